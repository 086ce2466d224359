"""The entries of a JSON file brought together by a key, such as all questions about one picture.

Annotation files are in the order in which somebody annotated, not by picture. A first pass notes for every entry where
it begins and ends and to which group it belongs: 20 bytes per entry and some 200 per group. Then the entries of one
group after the other are read again. On gs:// the file is copied to the local disk for that time.
"""

from __future__ import annotations

import array
import contextlib
import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
from etils import epath

from data_pipelines.corpora.json_stream import entries_in, parse
from data_pipelines.corpora.rows import BadRow
from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime import storage

_BUFFER = 1 << 12  # bytes; an entry is a few hundred
_MOST_NAME = 1 << 9  # bytes of the name of a member and its colon
_NAME = re.compile(rb'("(?:[^"\\]|\\.)*")\s*:\s*\Z', re.DOTALL)

Key = TypeVar("Key", bound=Hashable)


class JsonIndex(Generic[Key]):
    """The entries of an open JSON file by their keys.

    Attributes:
      keys: of all groups, in the order in which the file first mentions them.
      failures: the entries that are not JSON or have no key.
    """

    def __init__(self, file: epath.PathLike, stream: BinaryIO, key: str, key_of: Callable[[str, Any], Key | None]):
        """Reads the file once.

        Args:
          file: to read.
          stream: the same file, opened.
          key: of the list or object with the entries; "" if it is at the top of the file.
          key_of: (name of the member, value) -> the key of its group, or None to leave the entry out. It raises
            `BadRow` if the entry has no key.
        """
        self._stream = stream
        self._groups: dict[Key, int] = {}
        self.failures: list[FailedRow] = []
        starts = array.array("q")
        ends = array.array("q")
        groups = array.array("i")
        for entry in entries_in(stream, file, key):
            if entry.failure is not None:
                self.failures.append(entry.failure)
                continue
            try:
                group = key_of(entry.name, entry.value)
            except BadRow as error:
                self.failures.append(error.failed)
                continue
            if group is None:
                continue
            starts.append(entry.start)
            ends.append(entry.end)
            groups.append(self._groups.setdefault(group, len(self._groups)))
        order = np.argsort(np.frombuffer(groups, np.int32) if groups else np.zeros(0, np.int32), kind="stable")
        self._starts = np.array(starts, np.int64)[order]
        self._ends = np.array(ends, np.int64)[order]
        counts = np.bincount(np.array(groups, np.int64), minlength=len(self._groups))
        self._bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def keys(self) -> list[Key]:
        """See the class."""
        return list(self._groups)

    def values(self, key: Key) -> list[Any]:
        """The entries of a group in the order of the file; empty for a key that the file does not mention."""
        group = self._groups.get(key)
        if group is None:
            return []
        spans = range(self._bounds[group], self._bounds[group + 1])
        return [self._read(int(self._starts[index]), int(self._ends[index])) for index in spans]

    def members(self, key: Key) -> list[tuple[str, Any]]:
        """The entries of a group of a JSON object with their names, which are in the bytes before the values."""
        group = self._groups.get(key)
        if group is None:
            return []
        members = []
        for index in range(self._bounds[group], self._bounds[group + 1]):
            start = int(self._starts[index])
            before = min(start, _MOST_NAME)
            self._stream.seek(start - before)
            payload = self._stream.read(int(self._ends[index]) - start + before)
            name = _NAME.search(payload[:before])
            members.append((str(parse(name[1])) if name else "", parse(payload[before:])))
        return members

    def _read(self, start: int, end: int) -> Any:
        self._stream.seek(start)
        return parse(self._stream.read(end - start))


@contextlib.contextmanager
def indexed(file: epath.PathLike, key: str, key_of: Callable[[str, Any], Key | None]) -> Iterator[JsonIndex[Key]]:
    """The index of a JSON file, which stays open until the block ends. See `JsonIndex` for the arguments.

    Raises:
      UserError: if the file is not a JSON list or object, or has none under the key.
    """
    with _with_fast_seeks(file) as stream:
        yield JsonIndex(file, stream, key, key_of)


@contextlib.contextmanager
def _with_fast_seeks(file: epath.PathLike) -> Iterator[BinaryIO]:
    if not storage.is_remote(file):
        with storage.open_read(file, _BUFFER) as stream:
            yield stream
        return
    with storage.local_copy(file) as copy, open(copy, "rb") as stream:
        yield stream
