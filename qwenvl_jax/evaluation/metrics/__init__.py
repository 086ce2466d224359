"""Metrics as pure functions of answers and truths."""
