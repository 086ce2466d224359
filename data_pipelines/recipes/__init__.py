"""The rules of each corpus, with their settings."""
