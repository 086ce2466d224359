"""Scores of checkpoints: questions from records, generated answers, metrics, and the report."""
