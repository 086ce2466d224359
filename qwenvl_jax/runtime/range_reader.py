"""Ranges of bytes, from any source, as a seekable open file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class RangeReader(io.RawIOBase):
    """A seekable file without a buffer; `io.BufferedReader` goes around it.

    Args:
      size: of the file in bytes.
      fetch: gives bytes for (start, size); fewer only at the end of the file.
      close: called once at the end.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], close: Callable[[], None]):
        self._size, self._fetch, self._close, self._at = size, fetch, close, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        payload = self._fetch(self._at, wanted) if wanted > 0 else b""
        buffer[: len(payload)] = payload
        self._at += len(payload)
        return len(payload)

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()
