"""Downloads of Debian packages, with a cache."""
