"""Standard output and error that end no command: nobody may read them any more, or they cannot show a letter.

A run goes on for days, and a launcher has rented chips, when the terminal, `tee` or `head` behind the pipe is gone.
What they write to files counts; the lines are lost.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a terminal that was closed


class _Output(io.FileIO):
    """A descriptor that leads nowhere once its reader has gone, also for child processes and for libraries in C."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def make_lasting() -> None:
    """Replaces Python's streams by such ones, unless something else has replaced them before.

    Descriptors 0 to 2 that are closed are opened on nothing. Otherwise the next file, such as one of a checkpoint,
    would get the number, and lines of libraries in C would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)  # by child processes
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(2, sys.stderr)


def _lasting(descriptor: int, stream: io.TextIOBase | None) -> io.TextIOWrapper:
    """A stream with the encoding of another one, which shows other letters as escapes."""
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
        write_through=bool(os.environ.get("PYTHONUNBUFFERED")),
    )
