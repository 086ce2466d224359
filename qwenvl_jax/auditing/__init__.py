"""What a stage would be taught: its first samples, counted, decoded and shown on one page."""
