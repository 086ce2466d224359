"""Child processes that end with the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import signal

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def end_with_parent() -> None:
    """Lets the kernel send SIGTERM to this process if the one that started it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
