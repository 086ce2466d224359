"""Configs in pure Python, one file per stage; arguments follow the file name by name: `FILE.py:mesh=v5p,data=..`."""
