"""Models that score pairs of pictures and texts for the data pipelines; training never imports them."""
