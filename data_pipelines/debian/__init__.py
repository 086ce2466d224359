"""A real corpus from Debian packages, which are laid out for the readers of corpora."""
