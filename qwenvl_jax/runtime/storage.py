"""Files of a local disk or of an object store (`gs://bucket/..`): the one place that knows the difference.

Everything here repeats what passes by itself for `patience()` seconds (`retries`) and then raises `StorageError`. An
object store has no folders, no renaming and no appending: a folder is the names that begin with it, an object appears
whole when its upload ends, and a folder that must appear whole has one file written last, which its readers demand.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import fsspec
from etils import epath

from qwenvl_jax.runtime.errors import StorageError, UserError, refuse_endless
from qwenvl_jax.runtime.range_reader import RangeReader
from qwenvl_jax.runtime.retries import NotWhole, patience, retried

if TYPE_CHECKING:
    from qwenvl_jax.runtime.gcs_store import Store

__all__ = ["NotWhole", "StorageError", "patience", "retried"]

_REMOTE = "gs://"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*)://")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._\-]{1,220}[a-z0-9](/|$)")
_BLOCK = 16 << 20  # bytes of one request of a copy
_BUFFER = 1 << 20


class Entry(NamedTuple):
    """What a listing tells.

    Attributes:
      size: in bytes, None for a folder.
      changed: when it was last written, in nanoseconds since 1970.
    """

    size: int | None
    changed: int


# TensorStore repeats for a quarter of an hour, but a server that falls silent it would wait for without end.
for _name, _value in (
    ("CONNECT_TIMEOUT_SECONDS", "60"),
    ("LOW_SPEED_TIME_SECONDS", "60"),
    ("LOW_SPEED_LIMIT_BYTES", "1"),
):
    os.environ.setdefault(f"TENSORSTORE_CURL_{_name}", _value)

# Everything that opens gs:// through fsspec (etils, Orbax, TFDS) gets the patient client. Imported when first used.
for _protocol in ("gs", "gcs"):
    fsspec.register_implementation(
        _protocol,
        "qwenvl_jax.runtime.gcs.Gcs",
        clobber=True,
        errtxt="paths on gs:// need gcsfs; install what requirements-tpu.txt lists",
    )


def path(text: epath.PathLike) -> epath.Path:
    """A path that a user wrote: `~` is expanded, `gs://bucket/..` stays as it is.

    Raises:
      UserError: for any other scheme, a bucket that cannot be one, or gs:// without the package that reads it.
    """
    name = os.fspath(text)
    scheme = scheme_of(name)
    if not scheme and not name.startswith("gs:/"):
        return epath.Path(name).expanduser()
    if scheme not in ("gs", ""):
        raise UserError(f"{name}: only local paths and gs:// can be used, not {scheme}://; copy the files there first")
    if not _BUCKET.match(name):
        raise UserError(f"{name} names no bucket; write gs://BUCKET/PATH with a bucket of at least three characters")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{name}: paths on gs:// need the package gcsfs; install what requirements-tpu.txt lists")
    return epath.Path(name)


def scheme_of(text: str) -> str:
    """What stands before `://`, "" for a path on a disk."""
    found = _SCHEME.match(text)
    return found[1] if found else ""


def absolute(where: epath.PathLike) -> epath.Path:
    """The same path from the root, for libraries that ask for that; `resolve` would take gs:// for a local folder."""
    found = path(where)
    if is_remote(found):
        return found
    # `..` after a link leads to the folder above the one that it points to; without `..` links keep their names.
    return epath.Path(os.path.realpath(found) if ".." in found.parts else os.path.abspath(found))


def is_remote(where: epath.PathLike) -> bool:
    """Whether a path lies on an object store."""
    return os.fspath(where).startswith(_REMOTE)


def exists(where: epath.PathLike) -> bool:
    """Whether there is a file or folder of that name."""
    if is_remote(where):
        name = _plain(where)
        return _store().facts(name) is not None or _has_something(name)
    return retried(lambda: _stat(where), where) is not None


def is_folder(where: epath.PathLike) -> bool:
    """Whether there is a folder of that name: on an object store, whether anything lies in it."""
    if is_remote(where):
        return _has_something(_plain(where))
    return retried(lambda: os.path.isdir(where), where)


def size(where: epath.PathLike) -> int:
    """The size of a file in bytes.

    Raises:
      FileNotFoundError: if there is none.
    """
    if is_remote(where):
        return int(_facts(where)["size"])
    return retried(lambda: os.stat(where), where).st_size


def names(folder: epath.PathLike) -> list[str]:
    """Names of the files and folders in a folder, sorted.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    return sorted(sizes(folder))


def sizes(folder: epath.PathLike) -> dict[str, int | None]:
    """The files of a folder with their sizes in bytes, and the folders in it with None; see `entries`."""
    return {name: entry.size for name, entry in entries(folder).items()}


def entries(folder: epath.PathLike) -> dict[str, Entry]:
    """What lies in a folder, by name; one listing, however much that is.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    if is_remote(folder):
        found = _store().listed(_plain(folder))
        if not found:
            raise FileNotFoundError(2, "No such folder", str(folder))
        return {name: Entry(*facts) for name, facts in found.items()}

    def scan() -> dict[str, Entry]:
        with os.scandir(folder) as files:
            return {
                file.name: _entry(file.stat() if _leads(file) else file.stat(follow_symlinks=False)) for file in files
            }

    return retried(scan, folder)


def files_below(folder: epath.PathLike) -> list[str]:
    """All files below a folder, by names relative to it, sorted; none if there is no such folder."""
    if is_remote(folder):
        return sorted(_store().listed(_plain(folder), deep=True))
    root = os.fspath(folder)
    return sorted(
        os.path.relpath(os.path.join(place, name), root) for place, _, found in os.walk(root) for name in found
    )


def entry(where: epath.PathLike) -> Entry:
    """A single file or folder, as `entries` has it.

    Raises:
      FileNotFoundError: if there is none.
    """
    if is_remote(where):
        facts = _store().facts(_plain(where))
        if facts is not None:
            return Entry(*_store().described(facts))
        if _has_something(_plain(where)):
            return Entry(None, 0)
        raise FileNotFoundError(2, "No such file", str(where))
    return _entry(retried(lambda: os.stat(where), where))


def make_folder(folder: epath.PathLike) -> None:
    """Makes a folder and those above it; nothing on an object store, where the first file does that."""
    if not is_remote(folder):
        retried(lambda: os.makedirs(folder, exist_ok=True), folder)


def remove(where: epath.PathLike) -> None:
    """Removes a file, or a folder with all that is in it. What is missing is no error.

    In a folder on an object store the `.json` files go first: the manifest is what says that the rest is whole.
    """
    if is_remote(where):
        _store().remove(_plain(where))
        return

    def away() -> None:
        if os.path.isdir(where) and not os.path.islink(where):
            shutil.rmtree(where)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where)

    retried(away, where)


def rename(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a file another name in the same store, or a folder on a disk.

    On an object store the server copies the object, the copy is compared, and the first is removed; folders have no
    such operation there.
    """
    if is_remote(source):
        _store().rename(_plain(source), _plain(target))
        return
    make_folder(path(target).parent)
    retried(lambda: os.rename(source, target), source)


def read_bytes(where: epath.PathLike, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from byte `start`; fewer only where the file ends.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if is_remote(where):
        return _store().read(_plain(where), start, size)

    retried(lambda: refuse_endless(where), where)

    def read() -> bytes:
        with open(where, "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    return retried(read, where)


def write_bytes(where: epath.PathLike, payload: bytes) -> None:
    """Writes a file whole or not at all: under a temporary name, then renamed; on an object store in one upload."""
    if is_remote(where):
        _store().write(_plain(where), payload)
        return
    with local_output(where) as temporary:
        temporary.write_bytes(payload)


@contextlib.contextmanager
def open_read(where: epath.PathLike, buffer: int = _BUFFER) -> Iterator[BinaryIO]:
    """A seekable binary file to read from.

    Args:
      where: of the file.
      buffer: bytes that one request reads at least: large where a file is read from end to end in small pieces.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    with io.BufferedReader(_opened(where), buffer) as file:
        yield file


@contextlib.contextmanager
def local_copy(where: epath.PathLike) -> Iterator[epath.Path]:
    """A local file with the bytes of `where`: itself, or a copy on the temporary disk that goes with the block.

    For libraries that read local files only. A copy is compared with size and checksum of the object.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if not is_remote(where):
        retried(lambda: refuse_endless(where), where)
        yield path(where)
        return
    with tempfile.TemporaryDirectory(prefix="qwenvl-") as folder:
        copy = epath.Path(folder) / epath.Path(where).name
        retried(lambda: _download(where, copy), where)
        yield copy


@contextlib.contextmanager
def local_output(where: epath.PathLike) -> Iterator[epath.Path]:
    """A local file to write, which becomes `where` when the block ends without an error, and is removed otherwise.

    On a disk it is a temporary name in the same folder, renamed at the end; for an object store it is a file on the
    temporary disk, uploaded at the end and compared by size and checksum.
    """
    if is_remote(where):
        with tempfile.TemporaryDirectory(prefix="qwenvl-") as folder:
            temporary = epath.Path(folder) / epath.Path(where).name
            yield temporary
            _store().write_file(_plain(where), temporary)
        return
    final = path(where)
    make_folder(final.parent)
    temporary = final.parent / f".{final.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        retried(lambda: os.replace(temporary, final), final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _opened(where: epath.PathLike) -> RangeReader:
    if is_remote(where):
        store, name = _store(), _plain(where)
        return RangeReader(size(where), lambda start, wanted: store.read(name, start, wanted), lambda: None)
    retried(lambda: refuse_endless(where), where)
    file = retried(lambda: os.open(where, os.O_RDONLY), where)
    facts = os.fstat(file)
    if stat.S_ISDIR(facts.st_mode):
        os.close(file)
        raise IsADirectoryError(21, "Is a directory", str(where))

    def fetch(start: int, wanted: int) -> bytes:
        return retried(lambda: os.pread(file, wanted, start), where)

    return RangeReader(facts.st_size, fetch, lambda: os.close(file))


def _download(where: epath.PathLike, copy: epath.Path) -> None:
    from qwenvl_jax.runtime.gcs_store import crc32c

    facts = _facts(where)
    whole, store = int(facts["size"]), _store()

    def blocks() -> Iterator[bytes]:
        with copy.open("wb") as file:
            for start in range(0, whole, _BLOCK):
                block = store.read(_plain(where), start, min(_BLOCK, whole - start))
                file.write(block)
                yield block

    found = crc32c(blocks())
    if copy.stat().length != whole or found != facts.get("crc32c", found):
        raise NotWhole("size or checksum of the copy differ from those of the object")


def _facts(where: epath.PathLike) -> dict[str, Any]:
    facts = _store().facts(_plain(where))
    if facts is None:
        raise FileNotFoundError(2, "No such file", str(where))
    return facts


def _has_something(folder: str) -> bool:
    try:
        return bool(_store().listed(folder, at_most=2, deep=True))
    except FileNotFoundError:  # the bucket
        return False


def _plain(where: epath.PathLike) -> str:
    return os.fspath(where).rstrip("/")


def _entry(facts: os.stat_result) -> Entry:
    return Entry(None if stat.S_ISDIR(facts.st_mode) else facts.st_size, facts.st_mtime_ns)


def _leads(file: os.DirEntry[str]) -> bool:
    """Whether a link leads somewhere; one that does not is told as the link that it is."""
    return not file.is_symlink() or os.path.exists(file.path)


def _stat(where: epath.PathLike) -> os.stat_result | None:
    try:
        return os.stat(where)
    except (FileNotFoundError, NotADirectoryError):
        return None


@functools.cache
def _store() -> Store:
    try:
        from qwenvl_jax.runtime.gcs_store import Store
    except ImportError as error:
        raise UserError(f"paths on gs:// need gcsfs ({error}); install what requirements-tpu.txt lists") from None
    return Store()
