"""From pairs to records: one module per record task."""
