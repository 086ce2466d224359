"""Logging as it was: a command that a test calls sets up the logging of its whole process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from absl import logging as absl_logging


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Handlers and level of the root logger, `logging.disable` and absl's verbosity are after the block as before.

    Otherwise a handler keeps the captured standard output of one test, which is closed, and a later test that logs a
    line finds an error about it in its own output.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    verbosity = absl_logging.get_verbosity()
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)  # which may set the level of the root logger
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
