"""Encoded images to pixels: exact decoding and resizing, and the pool of processes that does it."""
