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


class _Slot:
    """A shard in the cache. `users` counts the threads that hold its reader; `opening` lets one of them open it."""

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
            with contextlib.suppress(Exception):  # one that has failed says so again
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
        self._slots: collections.OrderedDict[Key, _Slot] = collections.OrderedDict()  # least recently used first
        self._retired: collections.deque[object] = collections.deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    @contextlib.contextmanager
    def borrowed(self, key: Key, record_count: int, open_reader: Callable[[], Reader]) -> Iterator[Reader]:
        """The reader of a shard, which stays open during the block.

        Args:
          key: of the shard.
          record_count: of the shard.
          open_reader: opens it if it is not open; called by one thread at a time.
        """
        slot = self._take(key, READER_BYTES + INDEX_BYTES * record_count)
        try:
            with slot.opening:
                if slot.reader is None:
                    slot.reader = open_reader()
                reader = slot.reader
            yield reader
        finally:
            self._give_back(key, slot)

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

    def _take(self, key: Key, size: int) -> _Slot:
        with self._lock:
            idle = self._pop_retired()
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot(size)
                self._bytes += size
            slot.users += 1
            self._slots.move_to_end(key)
            idle += self._pop_surplus()
        _close(idle)
        return slot

    def _give_back(self, key: Key, slot: _Slot) -> None:
        with self._lock:
            slot.users -= 1
            idle = self._pop_surplus()
            if not slot.users and self._slots.get(key) is not slot and slot not in idle:
                idle.append(slot)  # it was dropped while this thread used it
        _close(idle)

    def _pop_surplus(self) -> list[_Slot]:
        idle: list[_Slot] = []
        while len(self._slots) > self._most_readers or self._bytes > self._most_bytes:
            oldest = next((key for key, slot in self._slots.items() if not slot.users), None)
            if oldest is None:
                break
            idle += self._pop([oldest])
        return idle

    def _pop_retired(self) -> list[_Slot]:
        idle: list[_Slot] = []
        while self._retired:
            owner = self._retired.popleft()
            idle += self._pop([key for key in self._slots if key[0] is owner])
        return idle

    def _pop(self, keys: list[Key]) -> list[_Slot]:
        """Forgets shards; returns those that no thread uses, to be closed. The last user closes the others."""
        popped = [self._slots.pop(key) for key in keys if key in self._slots]
        self._bytes -= sum(slot.bytes for slot in popped)
        return [slot for slot in popped if not slot.users]


def _close(slots: list[_Slot]) -> None:
    for slot in slots:
        slot.close()


@functools.cache
def shared() -> ReaderCache:
    """The cache of this process. Its readers use at most half of the file descriptors that the process may open."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:  # -1
        return ReaderCache(MOST_READERS)
    return ReaderCache(max(1, min(MOST_READERS, descriptors // 2)))
