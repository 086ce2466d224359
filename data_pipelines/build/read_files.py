"""The files that the rows of a part have read, such as pictures that a table names, and whether they have changed.

A part's own files are compared by their content before anything else. A file that a row names is compared by size and
times of change, and by its sha256 if these differ; on an object store by size and checksum.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

_MISSING = "missing"


class ReadFiles:
    """Collects the files that are read (`storage.watched`), except some.

    Args:
      but: the paths of these: the files of the part itself.
    """

    def __init__(self, but: Iterable[str]):
        self._but = frozenset(but)
        self._facts: dict[str, list[Any]] = {}
        self._since: set[str] = set()
        self._served: set[str] = set()  # read for a row that did not fail, or for all rows

    def saw(self, path: str) -> None:
        """Notes a file that is about to be read."""
        if path in self._but:
            return
        if path not in self._facts:
            self._facts[path] = _facts(path)
        self._since.add(path)

    def are_of(self, failed_row: bool) -> None:
        """Says whether the files seen since the last call were read for a row that failed."""
        if not failed_row:
            self._served |= self._since
        self._since.clear()

    def entries(self) -> list[list[Any]]:
        """[path, whether only rows that failed have read it, facts..] of each file."""
        return [[path, path not in self._served, *facts] for path, facts in self._facts.items()]


def _facts(path: str) -> list[Any]:
    """Size, times and the digest of the contents of a file; "missing" if there is none."""
    try:
        entry = storage.entry(path)
    except (OSError, UserError, ValueError):
        return [_MISSING]
    times = (entry.size, entry.changed, entry.touched)
    return [*times, entry.checksum or _sha256(path, *times)]


def _times(path: str) -> list[Any]:
    try:
        entry = storage.entry(path)
    except (OSError, UserError, ValueError):
        return [_MISSING]
    return [entry.size, entry.changed, entry.touched]


@functools.lru_cache(maxsize=1024)
def _sha256(path: str, *times: int | None) -> str:
    """The digest, which is remembered as long as size and times stay the same; "" for a file that cannot be read."""
    try:
        return artifacts.sha256_of(path)
    except (OSError, UserError):
        return ""


def are_unchanged(entries: Iterable[list[Any]], but_of_failed_rows: bool = False) -> bool:
    """Whether the files are as they were when they were read.

    Args:
      entries: of `ReadFiles.entries`.
      but_of_failed_rows: leaves out files that only rows that failed have read.
    """
    for path, of_failed, *facts in entries:
        if of_failed and but_of_failed_rows:
            continue
        times = _times(path)
        if times != facts[: len(times)] and (times == [_MISSING] or _facts(path)[-1] != facts[-1]):
            return False
    return True
