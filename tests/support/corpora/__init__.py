"""Writers of small corpora in the true file formats of their publishers; `table` has one per corpus."""
