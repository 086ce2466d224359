"""Public corpora: one module per layout, one line of `table` per corpus."""
