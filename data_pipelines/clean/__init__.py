"""Cleaning rules. Every pair that a rule rewrites or drops is counted."""
