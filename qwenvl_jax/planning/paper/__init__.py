"""The cost of the whole paper: corpora, three stages and the benchmarks of Table 9, each line with its formula."""
