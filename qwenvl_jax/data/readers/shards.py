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
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from qwenvl_jax.data.readers import reader_cache
from qwenvl_jax.data.readers.shard_table import Names
from qwenvl_jax.runtime import retries, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

# One record is read at a time, so reading ahead would be wasted. The end of a shard holds the positions of its records:
# 256 KiB are enough for 28,000, so that one request opens it. The default would read four times as much.
_OPTIONS = "readahead_buffer_size:0,footer_prefetch_bytes:262144"
_BUFFER = 32768


class Shards:
    """Random access to the records of all shards, in their order: `len(shards)`, `shards[i]` in bytes.

    Nothing is opened before it is read, and `reader_cache` limits how many shards are open. Threads may read at the
    same time.

    Args:
      folder: that holds the files.
      files: names of the shards.
      records_S: records in each of the S shards.
    """

    def __init__(self, folder: epath.PathLike, files: Names | Sequence[str], records_S: Sequence[int] | np.ndarray):
        self._folder = os.fspath(folder).rstrip("/")
        self._files = files
        self._ends_S = np.cumsum(records_S, dtype=np.int64)
        self._damaged: dict[int, dict[int, str]] = {}  # by shard, once it has been read through
        self._owner = object()  # of the readers in the cache
        weakref.finalize(self, reader_cache.shared().retire, self._owner)

    def __len__(self) -> int:
        return int(self._ends_S[-1]) if len(self._ends_S) else 0

    def __getitem__(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
          UserError: if the bytes of the record are damaged, or the shard is another one, with more or fewer records
            than it should have; they are so whenever they are read.
          StorageError: if they could not be read although they may be whole.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends_S, index, side="right"))
        position = index - self._start(shard)
        return retries.retried(lambda: self._read(shard, position), self._path(shard))

    def _path(self, shard: int) -> str:
        return f"{self._folder}/{self._files[shard]}"

    def _start(self, shard: int) -> int:
        """The index of the first record of a shard."""
        return int(self._ends_S[shard - 1]) if shard else 0

    def _count(self, shard: int) -> int:
        return int(self._ends_S[shard]) - self._start(shard)

    def _read(self, shard: int, position: int) -> bytes:
        cache = reader_cache.shared()
        key = (self._owner, shard)

        def read() -> bytes:
            # The thread that reads holds the reader, so that it stays open even if nobody waits for the answer.
            with cache.borrowed(key, self._count(shard), lambda: self._opened(shard)) as reader:
                return reader.read([position])[0]

        try:
            return _in_time(read) if storage.is_remote(self._folder) else read()
        except (MemoryError, UserError):
            raise
        except Exception:
            cache.drop(key)
            if position not in self._damaged.get(shard, ()):
                return self._read_copy(shard, position)
        raise self._error(shard, position)

    def _read_copy(self, shard: int, position: int) -> bytes:
        """A record by another way, whose bytes are beyond doubt; the first time all records of the shard are tried."""
        path = self._path(shard)
        try:
            with storage.local_copy(path) as copy:
                reader = _open(copy)
                if shard not in self._damaged:
                    self._damaged[shard] = _read_through(reader, copy, self._count(shard))
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
        return UserError(f"{self._path(shard)}, record {position}: damaged ({why}); copy it or write it again")

    def _opened(self, shard: int) -> Any:
        path = self._path(shard)
        reader = _open(path)  # a failure shows when it is read from
        # Sizes tell little: ArrayRecord fills shards up to whole blocks.
        if reader.ok() and reader.num_records() != self._count(shard):
            raise UserError(
                f"{path} holds {reader.num_records()} records instead of {self._count(shard)}, so "
                "it is another shard; copy the right one or write the folder again"
            )
        return reader


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
