"""Checksums of the files of a checkpoint: `checksums.json` in its folder lists every file with its size and CRC-32C.

`checksums` compares numbers once they are on the devices. The checksums of files cover everything else: numbers that
are converted while they are loaded, moments in host memory, indexes, and files that nothing reads. Any changed byte of
any file is noticed.

CRC-32C is the checksum that an object store keeps of every object. On gs:// one listing therefore replaces reading; on
a disk several threads read the files, at about three times the speed of zlib's CRC-32 and of SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import failures
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.steps import MARKER, NOTES
from qwenvl_jax.runtime import distributed, storage
from qwenvl_jax.runtime.crc32c import crc32c

NAME = "checksums.json"
LATE = (NOTES, MARKER)  # Orbax writes them after `finalize` of its handlers
_FILES = "files"  # key: [size in bytes, checksum] by the path of a file
_VALUES = "values"  # key: the sums of `checksums` by the path of a leaf
_DIGEST = "digest"
_BLOCK = 1 << 20  # bytes of one read; larger ones cost more in fresh memory than they save in calls
_REQUEST = 4 << 20  # bytes of one request to a store that keeps no checksums
_THREADS = 8
_MOMENT = 0.1  # seconds for which a file stays as it is before its checksum is taken early
_STATED = "crc32c:"  # begins the checksum of an entry whose store keeps one


class DamagedFileError(DamagedError):
    """A file that is not what was saved; `file` is its path within the checkpoint."""

    def __init__(self, file: str, message: str) -> None:
        super().__init__(f"{file} {message}")
        self.file = file


class Follower:
    """Takes the checksums of files while a checkpoint is written, so that few are left for `write` at its end.

    A file is read once its size and its time of change have stayed the same for a moment. Whoever uses the checksum
    compares inode, size and time again. On an object store nothing is to be done.

    Args:
      folder: of the unfinished checkpoint; it need not exist yet.
    """

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder
        self._known: dict[tuple[int, int, int], str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="checksums", daemon=True)
        if not storage.is_remote(folder):
            self._thread.start()

    def checksum(self, file: epath.Path) -> str | None:
        """The checksum of a file, wherever it has been renamed to, or None if it is not known."""
        return self._known.get(_identity(file)) if self._known else None

    def stop(self) -> None:
        """Ends the thread; what is known stays known."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(_MOMENT):
            for name in storage.files_below(self._folder):
                if self._ended.is_set():
                    return
                with contextlib.suppress(OSError):  # renamed in this moment, or a bad disk, which the save reports
                    self._take(self._folder / name)

    def _take(self, file: epath.Path) -> None:
        identity = _identity(file)
        if identity in self._known or time.time_ns() - identity[2] < _MOMENT * 1e9:
            return
        with file.open("rb") as stream:
            checksum = crc32c(iter(lambda: stream.read(_BLOCK), b""))
        if _identity(file) == identity:
            self._known[identity] = checksum


def _identity(file: epath.Path) -> tuple[int, int, int]:
    """What changes when a local file is written, but not when it is renamed: inode, size, time of change in ns."""
    facts = os.stat(file)
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def write(
    folder: epath.Path, *, late: bool, values: dict[str, Any] | None = None, follower: Follower | None = None
) -> None:
    """Writes `checksums.json`, with the checksums of all other files below `folder`.

    Args:
      folder: of a checkpoint, all files of which are written.
      late: whether the files that Orbax writes last are there as well.
      values: sums of the leaves.
      follower: knows the checksums of some files.
    """
    listed = storage.entries(folder, deep=True)
    names = [name for name in listed if name != NAME and (late or name not in LATE)]

    def checksum(name: str) -> str:
        known = follower.checksum(folder / name) if follower else None
        return known or _checksum(folder / name, listed[name].checksum)

    with ThreadPoolExecutor(_THREADS, "checksums") as threads:
        sums = threads.map(checksum, names)
        files = {name: [listed[name].size, checksum] for name, checksum in zip(names, sums, strict=True)}
    storage.write_bytes(folder / NAME, _text({_FILES: files, _VALUES: values or {}}))


def complete(folder: epath.Path) -> None:
    """Adds the checksums of the files that Orbax has written since `write`."""
    noted = _read(folder)
    for name in LATE:
        if storage.exists(folder / name):
            payload = storage.read_bytes(folder / name)
            noted[_FILES][name] = [len(payload), crc32c([payload])]
    storage.write_bytes(folder / NAME, _text(noted))


def has_any(folder: epath.Path) -> bool:
    """Whether the checkpoint has checksums of its files; earlier versions wrote none."""
    return storage.exists(folder / NAME)


def values_of(folder: epath.Path) -> dict[str, Any]:
    """The sums of the leaves that `write` got; none if there are no checksums. Raises DamagedError."""
    return _read(folder)[_VALUES] if has_any(folder) else {}


def verify(folder: epath.Path, below: tuple[str, ...] = ("",), *, part: int = 0, parts: int = 1) -> None:
    """Compares the files of a checkpoint with their checksums; a checkpoint without checksums passes.

    Args:
      folder: of the checkpoint.
      below: compare the files whose paths begin with one of these.
      part: compare only every `parts`-th file, beginning with this one; the largest come first.
      parts: how many processes share the work.

    Raises:
      DamagedError: if a file is missing, of another size or changed. Of several, the first by name is reported.
    """
    with failures.reading(folder):
        if not has_any(folder):
            return
        noted: dict[str, tuple[int, str]] = _read(folder)[_FILES]
        names = sorted((name for name in noted if name.startswith(below)), key=lambda name: (-noted[name][0], name))
        listed = storage.entries(folder, deep=True)

        def compare(name: str) -> DamagedFileError | None:
            size, checksum = noted[name]
            if name not in listed:
                return DamagedFileError(name, "is missing")
            if listed[name].size != size:
                return DamagedFileError(name, f"has {listed[name].size} bytes instead of {size}")
            if _checksum(folder / name, listed[name].checksum) != checksum:
                return DamagedFileError(name, "is not what was saved")
            return None

        with ThreadPoolExecutor(_THREADS, "checksums") as threads:
            damaged = [error for error in threads.map(compare, names[part::parts]) if error]
    if damaged:
        raise min(damaged, key=lambda error: error.file)


@contextlib.contextmanager
def verifying(folder: epath.Path, below: tuple[str, ...] = ("",), *, together: bool = False) -> Iterator[None]:
    """Verifies files while the block reads them. Damage of a file takes precedence over what the block raises for it.

    Args:
      folder: of the checkpoint.
      below: see `verify`.
      together: all processes read this checkpoint now, so that each compares its share of the files.

    Raises:
      DamagedError: from `verify` or from the block.
    """
    share = (distributed.process_index(), distributed.process_count()) if together else (0, 1)
    with ThreadPoolExecutor(1, "verification") as thread:
        verification = thread.submit(verify, folder, below, part=share[0], parts=share[1])
        try:
            yield
        except DamagedError:
            verification.result()
            raise
        verification.result()


def _checksum(file: epath.Path, stated: str) -> str:
    """The CRC-32C of a file: as its store states it, or of its bytes."""
    if stated.startswith(_STATED):
        return stated.removeprefix(_STATED)
    with storage.open_read(file, _REQUEST if storage.is_remote(file) else _BLOCK) as stream:
        return crc32c(iter(lambda: stream.read(_BLOCK), b""))


def _read(folder: epath.Path) -> dict[str, Any]:
    """The values of `checksums.json`. Raises DamagedError unless it is byte for byte what was written."""
    with failures.reading(folder):
        payload = storage.read_bytes(folder / NAME)
    try:
        values = json.loads(payload)
    except ValueError:
        values = None
    rest = {key: value for key, value in values.items() if key != _DIGEST} if isinstance(values, dict) else {}
    if payload != _text(rest):
        raise DamagedFileError(NAME, "is not what was saved")
    return rest


def _text(values: dict[str, Any]) -> bytes:
    """The only bytes of `checksums.json` that express these values."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({**values, _DIGEST: digest}, indent=1, sort_keys=True).encode()
