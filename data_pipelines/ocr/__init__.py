"""Text that is drawn into pictures."""
