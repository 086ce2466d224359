"""Checkpoints of a run: writing, finding, restoring, and the lineage of every component."""
