"""The configs of the quickstart: the four stages in miniature, and their evaluation."""
