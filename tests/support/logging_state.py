"""Logging as it was: a command that a test calls sets up the logging of its whole process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from absl import logging as absl_logging


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Whatever the block does to the root logger, to `logging.disable` and to absl's verbosity ends with it.

    Otherwise a handler keeps the captured standard output of one test, which is closed, and a later test that logs a
    line finds an error about it in its own output.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    verbosity = absl_logging.get_verbosity()
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
        root.setLevel(level)
        logging.disable(disabled)
        absl_logging.set_verbosity(verbosity)
