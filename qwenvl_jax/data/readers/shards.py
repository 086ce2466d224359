"""The serialised records in ArrayRecord shards, by index; a failed read is distinguished from damaged bytes.

ArrayRecord's reader raises RuntimeError for both, and a reader that failed to open always fails. So a reader that has
failed is dropped, and the record is read in another way: on gs:// from a copy that agrees with the object's size and
checksum. A record that cannot be read there is damaged for good. The first time, the whole shard is read, to find all
its damaged records.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from qwenvl_jax.runtime import retries, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

# One record is read at a time, so reading ahead would be wasted.
_OPTIONS = "readahead_buffer_size:0"
_BUFFER = 32768


class Shards:
    """Random access to the records of all shards, in their order: `len(shards)`, `shards[i]` in bytes.

    Nothing is opened before it is read. Threads may read at the same time.

    Args:
      paths: of the shards.
      counts: records in each.
    """

    def __init__(self, paths: Sequence[epath.PathLike], counts: Sequence[int]):
        self._paths = [os.fspath(path) for path in paths]
        self._counts = list(counts)
        self._ends = np.cumsum([0, *counts])[1:]
        self._readers: dict[int, Any] = {}
        self._damaged: dict[int, dict[int, str]] = {}  # by shard, once it has been read through
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
          UserError: if the bytes of the record are damaged, or the shard is another one, with more or fewer records
            than it should have; they are so whenever they are read.
          StorageError: if they could not be read although they may be whole.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        position = index - (int(self._ends[shard - 1]) if shard else 0)
        return retries.retried(lambda: self._read(shard, position), self._paths[shard])

    def _read(self, shard: int, position: int) -> bytes:
        def read() -> bytes:
            return self._reader(shard).read([position])[0]

        reader = self._readers.get(shard)
        try:
            return _in_time(read) if storage.is_remote(self._paths[shard]) else read()
        except (MemoryError, UserError):
            raise
        except Exception:
            self._drop(shard, reader)
            if position not in self._damaged.get(shard, ()):
                return self._read_copy(shard, position)
        raise self._error(shard, position)

    def _read_copy(self, shard: int, position: int) -> bytes:
        """A record by another way, whose bytes are beyond doubt; the first time all records of the shard are tried."""
        path = self._paths[shard]
        before = int(self._ends[shard - 1]) if shard else 0
        try:
            with storage.local_copy(path) as copy:
                reader = _open(copy)
                if shard not in self._damaged:
                    self._damaged[shard] = _read_through(reader, copy, int(self._ends[shard]) - before)
                if position in self._damaged[shard]:
                    raise self._error(shard, position)
                return _read_one(reader, copy, position)
        except FileNotFoundError:
            raise StorageError(
                f"{path} was there when it was opened and is gone; put it back and start again"
            ) from None
        except _Unreadable as error:  # of a file that could be read a moment ago
            raise retries.NotWhole(str(error)) from None

    def _error(self, shard: int, position: int) -> UserError:
        why = self._damaged[shard][position]
        return UserError(f"{self._paths[shard]}, record {position}: damaged ({why}); copy it or write it again")

    def _reader(self, shard: int) -> Any:
        reader = self._readers.get(shard)
        if reader is None:
            reader = _open(self._paths[shard])  # a failure shows when it is read from
            # Sizes tell little: ArrayRecord fills shards up to whole blocks.
            if reader.ok() and reader.num_records() != self._counts[shard]:
                raise UserError(
                    f"{self._paths[shard]} holds {reader.num_records()} records instead of {self._counts[shard]}, so "
                    "it is another shard; copy the right one or write the folder again"
                )
            with self._lock:
                reader = self._readers.setdefault(shard, reader)
        return reader

    def _drop(self, shard: int, reader: Any) -> None:
        """Forgets the reader of a shard, if it is still the one that was there before the read, or a new one."""
        with self._lock:
            if reader is None or self._readers.get(shard) is reader:
                self._readers.pop(shard, None)


class _Unreadable(Exception):
    """ArrayRecord cannot read a record; the message is its own."""


def _open(path: epath.PathLike) -> Any:
    return array_record_module.ArrayRecordReader(os.fspath(path), _OPTIONS, file_reader_buffer_size=_BUFFER)


def _read_one(reader: Any, path: epath.PathLike, position: int) -> bytes:
    """A record of a local file; raises `_Unreadable`, or an `OSError` if the disk failed in a way that may pass."""
    try:
        return reader.read([position])[0]
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        retries.raise_if_transient(text, path)
        raise _Unreadable(text[:300]) from None


def _read_through(reader: Any, path: epath.PathLike, count: int) -> dict[int, str]:
    """What is wrong with each record that is damaged."""
    damaged = {}
    for position in range(count):
        try:
            _read_one(reader, path, position)
        except _Unreadable as error:
            damaged[position] = str(error)
    return damaged


def _in_time(read: Callable[[], bytes]) -> bytes:
    """Runs `read` on a thread that is left alone when patience ends: the library itself tries for a quarter of an hour.

    Raises:
      TimeoutError: if it takes longer than `retries.patience()`.
    """
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(read())
        except BaseException as error:
            answer.put(error)

    threading.Thread(target=run, daemon=True, name="read").start()
    try:
        result = answer.get(timeout=retries.patience())
    except queue.Empty:
        raise TimeoutError("no answer") from None
    if isinstance(result, BaseException):
        raise result
    return result
