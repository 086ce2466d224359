"""The evaluation report: curves, scores and examples on one page."""
