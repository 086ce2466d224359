"""What a failed read of a checkpoint means: damaged bytes, or storage that cannot be used now.

Orbax and TensorStore raise nearly any type, with the status as a word in a long text. Whoever reads a checkpoint does
it inside `reading`; bytes that are gone, cut short or changed become a `DamagedError`, all else keeps its own type.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging as standard_logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from absl import logging

from qwenvl_jax.runtime.errors import StorageError, StorageOutage, UserError, file_errors_of

# Words of TensorStore's status codes, and errors of a system, that say nothing about the bytes.
_STATUS = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|PERMISSION_DENIED|UNAUTHENTICATED)\b")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")  # no time mends these
_SYSTEM = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DamagedError(Exception):
    """What is wrong with the bytes of a checkpoint, in a few words."""


@contextlib.contextmanager
def reading(folder: object) -> Iterator[None]:
    """Gives what goes wrong while `folder` is read one of four types.

    Raises:
      DamagedError: if something of it is missing, cut short or changed.
      StorageOutage: if the storage does not answer, or a limit of the system is reached.
      StorageError: if the storage refuses.
      OSError: if it may not be read.
      UserError, StorageError, MemoryError: as they are; so is anything of JAX, such as too little device memory.
    """
    try:
        with file_errors_of(folder):
            yield
    except (UserError, StorageError, DamagedError, MemoryError, *_MISSING) as error:
        if isinstance(error, _MISSING):
            raise DamagedError(_reason(error)) from error
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("jax", "jaxlib"):
            raise
        texts = [str(cause) for cause in _causes(error)]
        numbers = [getattr(cause, "errno", None) for cause in _causes(error)]
        system = any(os.strerror(number) in text for number in _SYSTEM for text in texts) or set(numbers) & {*_SYSTEM}
        if system or any(map(_STATUS.search, texts)) or _from_the_net(error):
            refused = any(word in text for word in _REFUSED for text in texts)
            kind = StorageError if refused else StorageOutage
            raise kind(f"{folder} cannot be read now ({_reason(error)}); run the same command again") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedError(_reason(error)) from error


@functools.cache
def quiet() -> None:
    """Keeps the tracebacks of Orbax's threads off the terminal: what they raise reaches the caller as well."""
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # TensorStore, of a save that has failed already
            shown(unraisable)

    sys.unraisablehook = show
    logging.get_absl_logger().addFilter(_not_from_orbax)
    standard_logging.getLogger("asyncio").addFilter(_not_of_a_lost_task)
    warnings.filterwarnings("ignore", message=r"coroutine .* was never awaited")


def _not_from_orbax(record: standard_logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname or record.levelno <= standard_logging.WARNING


def _not_of_a_lost_task(record: standard_logging.LogRecord) -> bool:
    return "exception was never retrieved" not in str(record.msg)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _from_the_net(error: Exception) -> bool:
    """Whether a client of an object store raised it."""
    return any(type(cause).__module__.split(".")[0] in ("aiohttp", "gcsfs", "google") for cause in _causes(error))


def _reason(error: Exception) -> str:
    """The innermost error in a few words: TensorStore puts its whole configuration after them."""
    cause = list(_causes(error))[-1]
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
    text = re.split(r" \[(?:tensorstore_spec|source locations)|\. See full TensorStore details", str(cause))[0]
    files = re.findall(r'(?:local file|gs://\S+|object) "?([^"]+)"', text)
    text = " ".join(text.split())
    if len(text) > 160:
        status = re.match(r"[A-Z_]{4,}(?=:)", text)
        text = f"{status[0] if status else type(cause).__name__}{f' in {files[-1]}' if files else ''}"
    return text or type(cause).__name__
