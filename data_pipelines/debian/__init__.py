"""A real corpus from Debian packages: what is fetched, and how it is laid out for the readers of corpora."""
