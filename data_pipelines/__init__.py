"""Offline jobs that write records. They never import jax, and training never imports them."""
