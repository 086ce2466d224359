"""Near and exact duplicates, within a corpus and with the images and questions of evaluation."""
