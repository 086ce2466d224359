"""Fonts for text that is drawn into pictures."""
