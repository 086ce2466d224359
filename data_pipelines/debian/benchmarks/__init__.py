"""Evaluation sets with known answers from Debian packages, in the layouts of published benchmarks."""
