"""PyTorch weights to parameters and back: one mapping table, the release, and the proof that both agree."""
