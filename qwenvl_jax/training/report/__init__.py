"""`report.html` of a run: curves, where the time went, restarts, checkpoints, data, config and lineage."""
