"""Files of a local disk or of an object store (`gs://bucket/..`): the only module that knows the difference.

Every function here repeats failures that pass by themselves for `patience()` seconds (`retries`) and then raises
`StorageError`. `disk` and `gcs_store` do the work. An object store has no folders, no renaming and no appending: a
folder is the set of names that begin with it, an object appears whole when its upload ends, and in a folder that must
appear whole one file is written last, which readers ask for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from etils import epath

from qwenvl_jax.runtime import disk
from qwenvl_jax.runtime.crc32c import crc32c
from qwenvl_jax.runtime.disk import Entry
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.runtime.range_reader import RangeReader
from qwenvl_jax.runtime.retries import NotWhole, retried

if TYPE_CHECKING:
    from qwenvl_jax.runtime.gcs_store import Store

__all__ = ["Entry", "StorageError"]

_REMOTE = "gs://"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*)://")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._\-]{1,220}[a-z0-9](/|$)")
_BLOCK = 16 << 20  # bytes of one request of a copy
_BUFFER = 1 << 20
_LOOKING_AT_ONCE = 16
_watcher: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar("watcher", default=None)
_NAMES_PER_THREAD = 1000  # of `sizes_of`: what one request to an object store can answer


# TensorStore repeats requests for a quarter of an hour, but it would wait for ever for a server that falls silent.
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
    """The letters before `://`; "" for a path on a disk."""
    match = _SCHEME.match(text)
    return match[1] if match else ""


def absolute(where: epath.PathLike) -> epath.Path:
    """The same path from the root, for libraries that ask for that; `resolve` would take gs:// for a local folder."""
    relative = path(where)
    if is_remote(relative):
        return relative
    # `..` after a link leads to the folder above the one that it points to; without `..` links keep their names.
    return epath.Path(os.path.realpath(relative) if ".." in relative.parts else os.path.abspath(relative))


def is_remote(where: epath.PathLike) -> bool:
    """Whether a path is on an object store."""
    return os.fspath(where).startswith(_REMOTE)


def exists(where: epath.PathLike) -> bool:
    """Whether there is a file or folder of that name."""
    if is_remote(where):
        name = _plain(where)
        return _store().facts(name) is not None or _has_something(name)
    return disk.exists(where)


def is_folder(where: epath.PathLike) -> bool:
    """Whether there is a folder of that name: on an object store, whether it has any object."""
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
    return disk.size(where)


def names(folder: epath.PathLike) -> list[str]:
    """Names of the files and folders in a folder, sorted.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    return sorted(sizes(folder))


def sizes(folder: epath.PathLike) -> dict[str, int | None]:
    """The files of a folder with their sizes in bytes, and the folders in it with None; see `entries`."""
    return {name: entry.size for name, entry in entries(folder).items()}


def entries(folder: epath.PathLike, *, deep: bool = False) -> dict[str, Entry]:
    """The files and folders in a folder, by name, from one listing; if `deep`, all files below it instead.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    if is_remote(folder):
        listed = _store().listed(_plain(folder), deep=deep)
        if not listed:
            raise FileNotFoundError(2, "No such folder", str(folder))
        return {name: Entry(*facts) for name, facts in listed.items()}
    return disk.entries_below(folder) if deep else disk.entries(folder)


def sizes_of(folder: epath.PathLike, names: Iterable[str]) -> dict[str, int]:
    """The sizes in bytes of those of the named files of a folder that exist.

    An object store is asked once per thousand names, a disk once per name, both by several threads. Other files in the
    folder make no difference, however many there are, unless their names are between those that are asked for.
    """
    ordered = sorted(names)
    many = max(_NAMES_PER_THREAD, -(-len(ordered) // _LOOKING_AT_ONCE))
    parts = [ordered[start : start + many] for start in range(0, len(ordered), many)]
    if is_remote(folder):
        store = _store()
        look = functools.partial(store.sizes_of, _plain(folder))
    else:
        look = functools.partial(disk.sizes_of, folder)
    sizes: dict[str, int] = {}
    with concurrent.futures.ThreadPoolExecutor(_LOOKING_AT_ONCE, "sizes") as threads:
        for part in threads.map(look, parts):
            sizes |= part
    return sizes


def files_below(folder: epath.PathLike) -> list[str]:
    """All files below a folder, by names relative to it, sorted; none if there is no such folder."""
    if is_remote(folder):
        return sorted(_store().listed(_plain(folder), deep=True))
    return disk.files_below(folder)


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
    return disk.entry(where)


def make_folder(folder: epath.PathLike) -> None:
    """Makes a folder and those above it; nothing on an object store, where the first file does that."""
    if not is_remote(folder):
        retried(lambda: os.makedirs(folder, exist_ok=True), folder)


def remove(where: epath.PathLike) -> None:
    """Removes a file, or a folder with everything in it; a missing one is no error.

    In a folder on an object store the `.json` files go first: the manifest says that the rest is whole.
    """
    if is_remote(where):
        _store().remove(_plain(where))
    else:
        disk.remove(where)


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


def copy(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a file that nobody changes a second name in the same store.

    On a disk it is a link that takes no room, or a copy if the file system has no links. On an object store the server
    copies the object.
    """
    if is_remote(source):
        _store().copy(_plain(source), _plain(target))
        return
    make_folder(path(target).parent)
    with disk.output(path(target)) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def read_bytes(where: epath.PathLike, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from byte `start`; fewer only at the end of the file.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    _will_read(where)
    if is_remote(where):
        return _store().read(_plain(where), start, size)

    return disk.read(where, start, size)


@contextlib.contextmanager
def watched(saw: Callable[[str], None]) -> Iterator[None]:
    """Calls `saw` with the path of every file that this thread is about to read in the block.

    What `saw` itself reads is not watched.
    """
    token = _watcher.set(saw)
    try:
        yield
    finally:
        _watcher.reset(token)


def _will_read(where: epath.PathLike) -> None:
    saw = _watcher.get()
    if saw is not None:
        token = _watcher.set(None)
        try:
            saw(os.fspath(where))
        finally:
            _watcher.reset(token)


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
      buffer: the least bytes of one request; large if a file is read from end to end in small pieces.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    _will_read(where)
    with io.BufferedReader(_open_ranges(where), buffer) as file:
        yield file


@contextlib.contextmanager
def local_copy(where: epath.PathLike) -> Iterator[epath.Path]:
    """A local file with the bytes of `where`: the file itself, or a temporary copy that is removed after the block.

    For libraries that read local files only. A copy is compared with the size and the checksum of the object.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    _will_read(where)
    if not is_remote(where):
        retried(lambda: disk.refuse_endless(where), where)
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
    make_folder(path(where).parent)
    with disk.output(path(where)) as temporary:
        yield temporary


def _open_ranges(where: epath.PathLike) -> RangeReader:
    if not is_remote(where):
        return disk.open_ranges(where)
    store = _store()
    name = _plain(where)
    return RangeReader(size(where), lambda start, wanted: store.read(name, start, wanted), lambda: None)


def _download(where: epath.PathLike, copy: epath.Path) -> None:
    facts = _facts(where)
    whole = int(facts["size"])
    store = _store()

    def blocks() -> Iterator[bytes]:
        with copy.open("wb") as file:
            for start in range(0, whole, _BLOCK):
                block = store.read(_plain(where), start, min(_BLOCK, whole - start))
                file.write(block)
                yield block

    checksum = crc32c(blocks())
    if copy.stat().length != whole or checksum != facts.get("crc32c", checksum):
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


@functools.cache
def _store() -> Store:
    try:
        from qwenvl_jax.runtime.gcs_store import Store
    except ImportError as error:
        raise UserError(f"paths on gs:// need gcsfs ({error}); install what requirements-tpu.txt lists") from None
    return Store()
