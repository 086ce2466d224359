"""How long a storage request is repeated, and after which errors: the one policy for all reading and writing of files.

What passes by itself (an overloaded server, a broken connection, an answer that is too late or too short) is repeated
with growing pauses for `patience()` seconds. An error that does not pass (a missing file, a refused permission) is
raised at once.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from qwenvl_jax.runtime.errors import StorageError, StorageOutage, UserError, one_line

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

PATIENCE = "QWENVL_STORAGE_PATIENCE"  # environment variable, in seconds
_DEFAULT_PATIENCE = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_ANSWER_LIMIT = 60.0  # seconds without a byte of an answer

# 401 is not among them: tokens are renewed before they end.
TRANSIENT_STATUS = frozenset({408, 429, *range(500, 600)})

# Errors that network file systems give while their server is unavailable.
_TRANSIENT_ERRNO = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EINTR,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.EREMOTEIO,
    }
)
_pauses = random.SystemRandom()  # separate from the generators that a seed makes repeatable


# Errors of a read that are not the file's fault. A second try may succeed, so no output may depend on them.
READ_AGAIN = (StorageError, OSError, MemoryError)


class NotWhole(Exception):
    """Bytes that arrived, or were stored, are not all of those that were sent."""


def patience() -> float:
    """Seconds for which a failing request is repeated: 300, or what QWENVL_STORAGE_PATIENCE says.

    Raises:
      UserError: if the variable is not a number of seconds.
    """
    text = os.environ.get(PATIENCE)
    if not text:
        return _DEFAULT_PATIENCE
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{PATIENCE} is {text!r}; it must be a number of seconds such as 300")
    return seconds


def answer_limit() -> float:
    """Seconds that a server may be silent before the request counts as failed."""
    return min(_ANSWER_LIMIT, max(1.0, patience() / 3))


def pause_after(attempt: int, started: float) -> float | None:
    """Seconds to wait after failed attempt number `attempt` (from 0), or None if no patience is left.

    Args:
      attempt: how many failed before.
      started: time of the first attempt, by `time.monotonic`.
    """
    left = started + patience() - time.monotonic()
    if left <= 0:
        return None
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt, 16))
    return min(pause * _pauses.uniform(0.5, 1.0), left)


def note_failure(where: object, error: BaseException, attempt: int) -> None:
    """Says in the log that a request is being repeated, once it has failed for some seconds."""
    if attempt == 3:
        _log.warning("%s: %s; trying again for up to %.0f seconds", where, one_line(error), patience())


def exhausted(where: object, error: BaseException) -> StorageOutage:
    """The error for a request that failed to the end of patience."""
    return StorageOutage(
        f"{where} could not be reached for {patience():.0f} seconds ({one_line(error)}); run the same command again "
        f"when the storage answers ({PATIENCE} sets how long to wait)"
    )


def is_transient(error: BaseException) -> bool:
    """Whether an error of the file system is one that passes."""
    if isinstance(error, OSError):
        return isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _TRANSIENT_ERRNO
    return isinstance(error, NotWhole)


def raise_if_transient(text: str, where: object) -> None:
    """Raises an `OSError` if the message of a C++ library reports a failure of the disk that may pass."""
    for code in _TRANSIENT_ERRNO:
        if os.strerror(code) in text:
            raise OSError(code, os.strerror(code), str(where))


def retried(function: Callable[[], _T], path: object) -> _T:
    """Runs a storage request that may be repeated, under the policy of this file.

    Args:
      function: makes the whole request; a failed attempt must leave nothing harmful.
      path: the path that messages name.

    Raises:
      StorageOutage: after `patience()` seconds. Any error that does not pass is raised as it is.
    """
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
            pause = pause_after(attempt, started)
            if pause is None:
                raise exhausted(path, error) from error
            note_failure(path, error, attempt)
            time.sleep(pause)
    raise AssertionError("unreachable")
