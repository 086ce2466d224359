"""Errors that a user can cause or has to mend, and how a command ends on one.

A mistake in a flag, a config, a file or a record is a `UserError`: one sentence that says what is wrong and what to do.
Storage that cannot be reached is a `StorageError`. `commandline.run` runs every main inside `exit_on_user_error`, so
that such a mistake ends with that sentence on stderr and exit code 2, never with a traceback from deep inside. Anything
else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Iterable, Iterator

INTERRUPTED = 128 + signal.SIGINT  # the exit code that a shell reports for Ctrl-C


class UserError(Exception):
    """A mistake in the user's input. The message is one sentence: what is wrong and what to do."""


class StorageError(Exception):
    """Storage that did not answer, or answered wrongly, for as long as it was asked again; one sentence.

    Not a `UserError`: nothing is wrong with what was read, so it never counts as a corrupt sample.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest known name, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(error: object) -> str:
    """What an error says, in one line of at most 300 characters; its type if it says nothing."""
    try:
        says = " ".join(str(error).split())[:300]
    except Exception:  # of a class that somebody else wrote
        says = ""
    return says or type(error).__name__


def _visible(text: str) -> str:
    """A text that leaves a terminal as it is: control and format characters, which names may hold, as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


# What a file system refuses for reasons that are the user's to mend.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_ODD = (  # a file for a folder and the reverse, names and links that lead nowhere
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EBUSY),
)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns `UserError`, `StorageError`, a full disk, a forbidden path and full memory into one line and exit code 2.

    Ctrl-C ends a command with one line as well, and with the exit code that a shell reports for it.
    """
    try:
        yield
    except (UserError, StorageError) as error:
        message = str(error)
    except MemoryError as error:
        says = f" ({error})" if str(error) else ""
        message = f"this machine has no memory left{says}; free some and run the same command again"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        where = error.filename or "the output"
        if error.errno in _FULL:
            message = f"no space left on the disk of {where}; free some and run the same command again"
        elif error.errno == errno.ENOENT and error.filename:
            message = f"{where} is not there; name another path, and remove nothing while a command works with it"
        elif error.errno in (*_FORBIDDEN, *_ODD):
            message = f"{where} cannot be used ({error.strerror}); name another path or change its permissions"
        else:
            raise
    else:
        return
    line = " ".join(message.splitlines())  # a name may hold a line break
    print(f"error: {_visible(line)}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def file_errors_of(path: object) -> Iterator[None]:
    """Gives errors of the file system their own type again if a C++ library has turned them into texts.

    Those that name no file get `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        for code in (*_FULL, *_FORBIDDEN, *_ODD):
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise
