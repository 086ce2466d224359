"""Files of a local disk, as `storage` needs them; failures that pass are repeated (`retries`)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.range_reader import RangeReader
from qwenvl_jax.runtime.retries import retried


class Entry(NamedTuple):
    """One file or folder of a listing.

    Attributes:
      size: in bytes, None for a folder.
      changed: when it was last written, in nanoseconds since 1970.
      checksum: of the contents, as the object store states it, e.g. `crc32c:yZRlqg==`; "" for a folder and on a disk.
      touched: when contents, name or rights last changed, in nanoseconds since 1970. Unlike `changed` it cannot be set
        by a program. 0 on an object store.
    """

    size: int | None
    changed: int
    checksum: str = ""
    touched: int = 0


def exists(path: epath.PathLike) -> bool:
    """Whether there is a file or folder of that name."""

    def look() -> bool:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    return retried(look, path)


def size(path: epath.PathLike) -> int:
    """The size of a file in bytes. Raises FileNotFoundError if there is none."""
    return retried(lambda: os.stat(path), path).st_size


def free_bytes(folder: epath.Path) -> int:
    """Free space of the disk of a folder, which need not exist yet."""
    while not exists(folder):
        folder = folder.parent
    return retried(lambda: shutil.disk_usage(folder), folder).free


def entry(path: epath.PathLike) -> Entry:
    """A single file or folder. Raises FileNotFoundError if there is none."""
    return _entry(retried(lambda: os.stat(path), path))


def entries(folder: epath.PathLike) -> dict[str, Entry]:
    """The files and folders in a folder, by name. A link that leads nowhere is listed as a link."""

    def scan() -> dict[str, Entry]:
        with os.scandir(folder) as files:
            return {file.name: _entry(file.stat(follow_symlinks=_leads_somewhere(file))) for file in files}

    return retried(scan, folder)


def sizes_of(folder: epath.PathLike, names: Sequence[str]) -> dict[str, int]:
    """The sizes in bytes of those of the named files of a folder that exist; other files cost nothing."""
    sizes = {}
    for name in names:
        path = os.path.join(folder, name)
        try:
            facts = retried(functools.partial(os.stat, path), path)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # or a name that cannot be encoded
            continue
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                continue
            raise
        if not stat.S_ISDIR(facts.st_mode):
            sizes[name] = facts.st_size
    return sizes


def files_below(folder: epath.PathLike) -> list[str]:
    """All files below a folder, by names relative to it, sorted."""
    root = os.fspath(folder)
    files = (os.path.join(parent, name) for parent, _, names in os.walk(root) for name in names)
    return sorted(os.path.relpath(file, root) for file in files)


def entries_below(folder: epath.PathLike) -> dict[str, Entry]:
    """All files below a folder, by names relative to it. Raises FileNotFoundError if there is no such folder."""
    os.stat(folder)
    return {name: entry(os.path.join(folder, name)) for name in files_below(folder)}


def remove(path: epath.PathLike) -> None:
    """Removes a file, or a folder with everything in it; a missing one is no error, nor one that another removes."""

    def away() -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    retried(away, path)


def _unless_gone(function: Any, path: str, error: tuple[Any, BaseException, Any]) -> None:
    """Raises the error of `shutil.rmtree` at a path, unless another process has removed it."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def read(path: epath.PathLike, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from byte `start`; fewer only at the end of the file."""
    retried(lambda: refuse_endless(path), path)

    def whole() -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    return retried(whole, path)


def open_ranges(path: epath.PathLike) -> RangeReader:
    """A seekable file without a buffer. Raises FileNotFoundError or IsADirectoryError."""
    retried(lambda: refuse_endless(path), path)
    file = retried(lambda: os.open(path, os.O_RDONLY), path)
    facts = os.fstat(file)
    if stat.S_ISDIR(facts.st_mode):
        os.close(file)
        raise IsADirectoryError(21, "Is a directory", str(path))

    def fetch(start: int, wanted: int) -> bytes:
        return retried(lambda: os.pread(file, wanted, start), path)

    return RangeReader(facts.st_size, fetch, lambda: os.close(file))


@contextlib.contextmanager
def output(path: epath.Path) -> Iterator[epath.Path]:
    """A temporary name in the folder of `path`, renamed to it if the block ends without an error, else removed."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        retried(lambda: os.replace(temporary, path), path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_endless(path: epath.PathLike) -> None:
    """Refuses a file without an end: opening a pipe waits for its writer, and /dev/zero never ends.

    Raises:
      FileNotFoundError: if there is no such file.
      UserError: for a pipe, a device or a socket.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a pipe, a device or a socket; name a file")


def _leads_somewhere(file: os.DirEntry[str]) -> bool:
    return not file.is_symlink() or os.path.exists(file.path)


def _entry(facts: os.stat_result) -> Entry:
    size = None if stat.S_ISDIR(facts.st_mode) else facts.st_size
    return Entry(size, facts.st_mtime_ns, touched=facts.st_ctime_ns)
