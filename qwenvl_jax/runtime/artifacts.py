"""Output files and folders, written whole or not at all, on a local disk or gs://."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import glob
import hashlib
import itertools
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from qwenvl_jax.runtime import folder_lock, storage
from qwenvl_jax.runtime.errors import UserError

_COPIED_AT_ONCE = 16
_HASHED = 16 << 20  # bytes read at a time
_PAUSE = 0.01  # seconds until a name that another call has taken is tried again
_UNIQUE = re.compile(r"[0-9a-f]{8}")  # in the names of folders beside an output


@contextlib.contextmanager
def undone_on_failure(folder: epath.PathLike) -> Iterator[None]:
    """If the block fails, removes what it has put into `folder`, and the folder itself if the block made it."""
    folder = epath.Path(folder)
    before = storage.names(folder) if storage.is_folder(folder) else None
    try:
        yield
    except BaseException:
        if before is None:
            storage.remove(folder)
        else:
            for name in set(storage.names(folder)) - set(before):
                storage.remove(folder / name)
        raise


def replace_folder(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives `source` the name `target` in the same store; the folder that had it is removed.

    On a disk at no moment are both gone; killed half-way it may leave `.NAME.XXXXXXXX.old`, the folder that was there
    before, which the next call removes. Of several calls at once on a disk the last to rename
    wins. On an object store the target is removed and every object copied by the server, the `.json` files last and
    `manifest.json` last of those: without it no folder counts as whole.
    """
    source, target = storage.path(source), storage.path(target)
    if storage.is_remote(target):
        storage.remove(target)
        names = sorted(storage.files_below(source), key=_completes)
        with concurrent.futures.ThreadPoolExecutor(_COPIED_AT_ONCE, "copy") as threads:
            for _, group in itertools.groupby(names, _completes):
                list(threads.map(lambda name: storage.rename(source / name, target / name), group))
        return
    storage.make_folder(target.parent)
    while not _takes_name(source, target):
        time.sleep(_PAUSE)
    for left in _left_beside(target, "old"):  # what was moved aside, also by killed calls
        storage.remove(left)


def _takes_name(source: epath.Path, target: epath.Path) -> bool:
    """Moves `target` aside and gives `source` its name; false if another call was quicker."""
    before = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
    replaced = storage.exists(target)
    try:
        if replaced:
            storage.rename(target, before)
    except FileNotFoundError:
        return False
    try:
        storage.rename(source, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and storage.is_folder(target):
            return False
        if replaced:
            with contextlib.suppress(OSError):  # another call has taken the name, or removed what was moved aside
                storage.rename(before, target)
        raise
    return True


@contextlib.contextmanager
def built_beside(output: epath.PathLike) -> Iterator[epath.Path]:
    """A new folder, `.NAME.XXXXXXXX.tmp` beside `output`, that takes its place once the block has filled it.

    It is removed if the block fails, and on a disk with locks the next build of the same output removes it if the
    process was killed: a build that is alive has its folder locked.
    """
    output = storage.path(output)
    if not storage.is_remote(output):
        _remove_abandoned(output)
    building = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.tmp"
    with undone_on_failure(building), folder_lock.locked(building, "it is being removed", tell=lambda _: None):
        storage.make_folder(building)
        yield building
        replace_folder(building, output)


def _remove_abandoned(output: epath.Path) -> None:
    """Removes what killed builds of `output` have left beside it."""
    for left in _left_beside(output, "tmp"):
        if left.is_dir():
            # Those of another user may be out of reach.
            with contextlib.suppress(UserError, OSError), folder_lock.locked(left, "it is being built") as sure:
                if sure:
                    storage.remove(left)


def _left_beside(output: epath.Path, kind: str) -> list[epath.Path]:
    """The paths `.NAME.XXXXXXXX.KIND` beside `output`; `.a.b.XXXXXXXX.old` is not of `a`, but of `a.b`."""
    start, end = f".{output.name}.", f".{kind}"
    beside = output.parent.glob(f"{glob.escape(start)}*{end}")
    return [left for left in beside if _UNIQUE.fullmatch(left.name.removeprefix(start).removesuffix(end))]


def _completes(name: str) -> tuple[bool, bool, int]:
    """Sorts files later if they show that the rest is whole."""
    return name.endswith(".json"), name.endswith("manifest.json"), -name.count("/")


def output_folder(where: epath.PathLike) -> epath.Path:
    """The absolute path of a folder to write.

    A link is followed: a folder in its stead would be on the link's disk, not on the one that it leads to.
    """
    output = storage.absolute(where)
    is_link = not storage.is_remote(output) and os.path.islink(output)
    return epath.Path(os.path.realpath(output)) if is_link else output


def write_text(path: epath.PathLike, text: str) -> None:
    r"""Writes UTF-8 `text` whole or not at all; see `storage.write_bytes`.

    UTF-8 cannot express half a surrogate pair, which texts of corpora contain; it is written as `\ud83d`, which JSON
    reads as the same character.
    """
    storage.write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_of(path: epath.PathLike) -> str:
    """The sha256 of the bytes of a file, in hex digits. Raises FileNotFoundError if there is none."""
    digest = hashlib.sha256()
    with storage.open_read(path, _HASHED) as file:
        while block := file.read(_HASHED):
            digest.update(block)
    return digest.hexdigest()


_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: epath.PathLike, start: bytes) -> None:
    """Refuses a file that only says where Git-LFS keeps the contents; `start` are its first bytes, 40 or more.

    Raises:
      UserError: with the command that fetches the contents.
    """
    if start.startswith(_POINTER):
        raise UserError(f"{path} is a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder")


def read_json(path: epath.PathLike) -> Any:
    """Reads one JSON file.

    Raises:
      UserError: if the file is missing or is not JSON.
    """
    try:
        payload = storage.read_bytes(path)
        refuse_pointer(path, payload)
        return json.loads(payload)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; copy it there, or correct the path") from None
    except (ValueError, RecursionError) as error:  # malformed JSON, or bytes that are not UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); write it again") from None
