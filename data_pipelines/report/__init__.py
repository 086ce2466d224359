"""The page of a built corpus: counts per rule, histograms, samples, and what every rule dropped."""
