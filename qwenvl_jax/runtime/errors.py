"""Errors that a user can cause, and how a command ends on one.

A mistake in a flag, a config, a file or a record is a `UserError`: one sentence that says what is wrong and
what to do. Every main runs inside `exit_on_user_error`, so that such a mistake ends with that sentence on
stderr and exit code 2, never with a traceback from deep inside. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import sys
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in the user's input. The message is one sentence: what is wrong and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest known name, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns `UserError`, and a disk that ran out of space, into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the output"
        print(f"error: no space left on the disk of {where}; free some and run the same command again", file=sys.stderr)
        sys.exit(2)
