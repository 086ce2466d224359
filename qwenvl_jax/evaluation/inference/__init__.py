"""Answers about a user's pictures: `python -m qwenvl_jax.infer`."""
