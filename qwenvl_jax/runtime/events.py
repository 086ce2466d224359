"""TensorBoard event files."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.growing_file import GrowingFile


class EventWriter:
    """Writes numbers of a run for TensorBoard.

    tensorboardX has the format; its own writer leaves the file to a thread that dies on a full disk, so that the run
    would wait for it for ever, and knows no repeating of requests.

    Args:
      folder: of the event files; every start of a run adds one.
      purge_step: events of earlier starts from this step on are disowned.
    """

    def __init__(self, folder: epath.Path, purge_step: int | None = None):
        self._events, self._checksum = _format()
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        first = [self._events.Event(wall_time=time.time(), file_version="brain.Event:2")]
        if purge_step is not None:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            first.append(self._events.Event(wall_time=time.time(), step=purge_step, session_log=start))
        taken = set(storage.names(folder)) if storage.is_folder(folder) else set()
        while name in taken:  # a start in the same second, or one after which the clock went back
            name += ".again"
        self._file = GrowingFile(folder / name, b"".join(map(self._framed, first)))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of `step` by their names, e.g. `train/loss`."""
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._file.add(self._framed(self._events.Event(wall_time=time.time(), step=step, summary=summary)))

    def _framed(self, event: Any) -> bytes:
        """An event as a TFRecord: length, checksum of the length, bytes, checksum of the bytes."""
        payload = event.SerializeToString()
        length = struct.pack("<Q", len(payload))
        return b"".join(
            (length, struct.pack("<I", self._checksum(length)), payload, struct.pack("<I", self._checksum(payload)))
        )

    def flush(self) -> None:
        """As `GrowingFile.flush`."""
        self._file.flush()

    def close(self) -> None:
        """As `GrowingFile.close`."""
        self._file.close()


def _format() -> tuple[Any, Callable[[bytes], int]]:
    """tensorboardX's messages and checksum.

    It imports torch wherever it is installed, which costs seconds and hundreds of MB for nothing we use: it is told
    that there is none.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if hide:
            del sys.modules["torch"]
    return event_pb2, masked_crc32c
