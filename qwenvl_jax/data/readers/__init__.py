"""One file per kind of source: record folders, JSON, WebDataset and TFDS; `source` opens any of them."""
