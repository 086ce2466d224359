"""Qwen-VL (arXiv 2308.12966) in JAX and Flax. The mains are next to this file; a package is one part of the system."""
