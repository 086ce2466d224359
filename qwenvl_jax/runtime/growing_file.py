"""A file that grows while a run lives, on a disk or on an object store, where nothing can be appended."""

from __future__ import annotations

import os
import time

from etils import epath

from qwenvl_jax.runtime import storage

# Seconds between uploads to an object store; each writes the whole object again.
UPLOAD_EVERY = 60


class GrowingFile:
    """Begins as `content` and takes payloads at its end.

    On a disk a payload is in the file when `add` returns. On an object store it is there after UPLOAD_EVERY seconds,
    with the next payload, or after `flush`. `close` leaves nothing out.

    Args:
      path: of the file; what is there is replaced.
      content: what it begins with.
    """

    def __init__(self, path: epath.Path, content: bytes = b""):
        self._path = path
        self._remote = storage.is_remote(path)
        storage.write_bytes(path, content)
        self._content = bytearray(content if self._remote else b"")
        self._stale = False
        self._uploaded = time.monotonic()
        self._file = -1 if self._remote else os.open(path, os.O_WRONLY | os.O_APPEND)

    def add(self, payload: bytes) -> None:
        """Takes what comes next. Raises OSError, with the path, if the disk is full."""
        if not self._remote:
            self._append(payload)
            return
        self._content += payload
        self._stale = True
        if time.monotonic() - self._uploaded >= UPLOAD_EVERY:
            self.flush()

    def _append(self, payload: bytes) -> None:
        try:
            while payload:
                payload = payload[os.write(self._file, payload) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def flush(self) -> None:
        """Makes everything that was added visible to readers."""
        if self._stale:
            storage.write_bytes(self._path, bytes(self._content))
            self._stale = False
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Closes the file after writing everything that was added."""
        self.flush()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
