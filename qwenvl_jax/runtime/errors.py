"""Errors that a user can cause or has to mend, and how a command ends on one.

A mistake in a flag, a config, a file or a record is a `UserError`: one sentence that says what is wrong and what to do.
Storage that refuses is a `StorageError`, storage that does not answer a `StorageOutage`, and another process that is
gone a `PeerError`. `commandline.run` runs every main inside `exit_on_user_error`, so that such an error ends with its
sentence on stderr and a code of `exit_codes`, never with a traceback from deep inside. Anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Iterable, Iterator

from qwenvl_jax.runtime import exit_codes


class UserError(Exception):
    """A mistake in the user's input. The message is one sentence: what is wrong and what to do."""


class StorageError(Exception):
    """Storage that refused, or a file that is gone; one sentence.

    Not a `UserError`: nothing is wrong with what was read, so it never counts as a corrupt sample.
    """


class StorageOutage(StorageError):
    """Storage that did not answer, or answered wrongly, for as long as it was asked again; it may answer later."""


class PeerError(Exception):
    """Another process of the run is missing, was lost or has failed; one sentence.

    Attributes:
      code: the exit code of `exit_codes` with which this process ends as well.
    """

    def __init__(self, sentence: str, code: int = exit_codes.RETRY):
        super().__init__(sentence)
        self.code = code


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
    """Turns the errors of this file, a full disk, a forbidden path and full memory into one line and an exit code.

    The code is RETRY for a `StorageOutage`, that of a `PeerError`, and MISTAKE otherwise. Ctrl-C ends a command with
    one line as well, and with the exit code that a shell reports for it.
    """
    code = exit_codes.MISTAKE
    try:
        yield
    except (UserError, StorageError, PeerError) as error:
        message = str(error)
        if isinstance(error, StorageOutage):
            code = exit_codes.RETRY
        elif isinstance(error, PeerError):
            code = error.code
    except MemoryError as error:
        says = f" ({error})" if str(error) else ""
        message = f"this machine has no memory left{says}; free some and run the same command again"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED)
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
    sys.exit(code)


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
