"""Shows what a stage would be taught: its first examples, counted, decoded and drawn on one page."""
