"""A copy of a joined index on the disk of this host, if the index is on an object store."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.data.readers.tar_index import cache_folder
from qwenvl_jax.data.readers.tar_joined import JoinedIndex
from qwenvl_jax.runtime import log, storage

_RANGE = 16 << 20  # bytes of one request
_THREADS = 8
_SPARE = 1 << 30  # bytes that must stay free on the disk


def open_joined(path: epath.PathLike) -> JoinedIndex:
    """Opens a joined index; one on an object store is copied to the cache of this host first, once for all processes.

    If the disk has no room, the index is read from the store, in one more request per sample.

    Raises:
      UserError: if the file is cut off or damaged.
      FileNotFoundError: if there is none.
    """
    index = JoinedIndex(path)
    if not storage.is_remote(path):
        return index
    copy = cache_folder() / f"{index.content}.joined"
    size = storage.size(path)
    try:
        storage.make_folder(cache_folder())
        with _one_at_a_time(copy.parent / f".{copy.name}.lock"):
            if not (storage.exists(copy) and storage.size(copy) == size):
                free = shutil.disk_usage(copy.parent).free
                if free < size + _SPARE:
                    log.line(
                        f"{path}: {log.size(size)} do not fit into {copy.parent}, where {log.size(free)} are free, so "
                        "every sample costs one more request; set XDG_CACHE_HOME to a folder of a larger disk"
                    )
                    return index
                _copy(path, size, copy)
    except PermissionError:
        log.line(f"{path}: no copy can be written to {copy.parent}, so every sample costs one more request")
        return index
    return JoinedIndex(copy, is_copy=True)


def _copy(path: epath.PathLike, size: int, copy: epath.Path) -> None:
    """Copies in parallel requests, whole or not at all. Reading compares every block with its checksum."""
    with storage.local_output(copy) as temporary, temporary.open("wb") as file:

        def transfer(start: int) -> None:
            os.pwrite(file.fileno(), storage.read_bytes(path, start, min(_RANGE, size - start)), start)

        with concurrent.futures.ThreadPoolExecutor(_THREADS, "copy") as threads:
            list(threads.map(transfer, range(0, size, _RANGE)))


@contextlib.contextmanager
def _one_at_a_time(lock: epath.Path) -> Iterator[None]:
    """Lets the processes of this host run the block one after another. A killed process releases the lock."""
    with lock.open("wb") as file:
        with contextlib.suppress(OSError):  # a disk without locks: each process makes its own copy, the last one stays
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
