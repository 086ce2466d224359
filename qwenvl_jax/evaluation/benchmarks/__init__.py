"""The published benchmarks of the paper, one file per family; `registry.BENCHMARKS` has them by name."""
