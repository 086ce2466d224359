"""Open ArrayRecord readers, of which the least recently used ones are closed when they become too many.

A reader holds a file descriptor, a buffer and the position of every record of its shard. Random access to a large
data set touches every shard, so without a limit each process would end up with a reader for each.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

# 4,096 shards of 12,000 records, which is what `record_writer` puts into a shard of pictures, need half a gibibyte for
# their indexes and buffers. One reader more or less saves or costs the opening of a shard: 0.1 s on gs://.
MOST_READERS = 4096
MOST_BYTES = 512 << 20
READER_BYTES = 32 << 10  # of a reader without its index: the buffer of the file
INDEX_BYTES = 8  # per record

Key = tuple[object, int]  # the `Shards` that reads, and the number of its shard


class Reader(Protocol):
    """An `ArrayRecordReader`, whose module has no types."""

    def read(self, positions: list[int], /) -> list[bytes]:
        """The records at some positions of the shard."""
        ...

    def close(self) -> None:
        """Releases descriptor and memory."""
        ...


class _CachedReader:
    """The reader of a shard. `users` counts the threads that use it; `opening` lets one thread at a time open it."""

    __slots__ = ("bytes", "opening", "reader", "users")

    def __init__(self, size: int) -> None:
        self.bytes = size
        self.opening = threading.Lock()
        self.reader: Reader | None = None
        self.users = 0

    def close(self) -> None:
        reader = self.reader
        self.reader = None
        if reader is not None:
            with contextlib.suppress(Exception):  # a reader that has failed raises the same error again
                reader.close()


class ReaderCache:
    """Readers by shard, for several threads. Opening, reading and closing happen outside the lock of the cache.

    Readers in use are never closed, so there are at most `most_readers` plus one for each thread that is reading.

    Args:
      most_readers: how many readers stay open.
      most_bytes: how much memory they may hold, as far as `record_count` tells.
    """

    def __init__(self, most_readers: int, most_bytes: int = MOST_BYTES):
        self._most_readers = most_readers
        self._most_bytes = most_bytes
        self._bytes = 0
        self._readers: collections.OrderedDict[Key, _CachedReader] = (
            collections.OrderedDict()
        )  # least recently used first
        self._retired: collections.deque[object] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._readers)

    @contextlib.contextmanager
    def borrowed(self, key: Key, record_count: int, open_reader: Callable[[], Reader]) -> Iterator[Reader]:
        """The reader of a shard, which stays open during the block.

        Args:
          key: of the shard.
          record_count: of the shard.
          open_reader: opens it if it is not open; called by one thread at a time.
        """
        cached = self._take(key, READER_BYTES + INDEX_BYTES * record_count)
        try:
            with cached.opening:
                if cached.reader is None:
                    cached.reader = open_reader()
                reader = cached.reader
            yield reader
        finally:
            self._give_back(key, cached)

    def drop(self, key: Key) -> None:
        """Closes the reader of a shard as soon as no thread uses it; the next one who needs it opens another."""
        with self._lock:
            idle = self._pop([key])
        _close(idle)

    def retire(self, owner: object) -> None:
        """Lets the readers of an owner (the first half of the keys) be closed at the next access.

        Takes no lock, so the garbage collector may call it at any moment.
        """
        self._retired.append(owner)

    def _take(self, key: Key, size: int) -> _CachedReader:
        with self._lock:
            idle = self._pop_retired()
            cached = self._readers.get(key)
            if cached is None:
                cached = self._readers[key] = _CachedReader(size)
                self._bytes += size
            cached.users += 1
            self._readers.move_to_end(key)
            idle += self._pop_surplus()
        _close(idle)
        return cached

    def _give_back(self, key: Key, cached: _CachedReader) -> None:
        with self._lock:
            cached.users -= 1
            idle = self._pop_surplus()
            if not cached.users and self._readers.get(key) is not cached and cached not in idle:
                idle.append(cached)  # it was dropped while this thread used it
        _close(idle)

    def _pop_surplus(self) -> list[_CachedReader]:
        idle: list[_CachedReader] = []
        while len(self._readers) > self._most_readers or self._bytes > self._most_bytes:
            oldest = next((key for key, cached in self._readers.items() if not cached.users), None)
            if oldest is None:
                break
            idle += self._pop([oldest])
        return idle

    def _pop_retired(self) -> list[_CachedReader]:
        idle: list[_CachedReader] = []
        while self._retired:
            owner = self._retired.popleft()
            idle += self._pop([key for key in self._readers if key[0] is owner])
        return idle

    def _pop(self, keys: list[Key]) -> list[_CachedReader]:
        """Forgets shards; returns those that no thread uses, to be closed. The last user closes the others."""
        popped = [self._readers.pop(key) for key in keys if key in self._readers]
        self._bytes -= sum(cached.bytes for cached in popped)
        return [cached for cached in popped if not cached.users]


def _close(readers: list[_CachedReader]) -> None:
    for cached in readers:
        cached.close()


@functools.cache
def shared() -> ReaderCache:
    """The cache of this process. Its readers use at most half of the file descriptors that the process may open."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:  # -1
        return ReaderCache(MOST_READERS)
    return ReaderCache(max(1, min(MOST_READERS, descriptors // 2)))
