"""Sweeps over published benchmarks: the tables of the paper, few-shot prompts, and examinations without pictures."""
