"""The page of a built corpus: counts per rule, histograms, kept pairs, and the pairs that every rule dropped."""
