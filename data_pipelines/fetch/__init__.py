"""Downloads, with a cache."""
