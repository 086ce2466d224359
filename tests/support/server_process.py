"""Servers of tests that run as separate processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def serving(module: str, **options: object) -> Iterator[str]:
    """Runs a module whose first line of output ends with its URL; gives the URL. The options are its flags."""
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", module, *flags]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(10)
