"""Which tar files a path names."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import re
from collections.abc import Callable, Collection

from etils import epath

from qwenvl_jax.data.readers.paths import expand_braces
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.storage import Entry


def find_shards(path: epath.PathLike) -> dict[str, Entry]:
    """The tar files of a folder, a pattern such as `/data/laion/*.tar` or `{000..127}.tar`, or one file, by name.

    Every folder is listed once, however many of its files are meant.

    Raises:
      UserError: if braces name shards of which some are missing.
    """
    path = os.fspath(storage.path(path))

    @functools.cache
    def listing(folder: str) -> dict[str, Entry]:
        try:
            return storage.entries(folder or ".")
        except (FileNotFoundError, NotADirectoryError):
            return {}

    # A file of a disk may have braces in its name; on an object store they are a pattern.
    if "{" not in path or (not storage.is_remote(path) and storage.exists(path)):
        return dict(sorted(_matching(path, listing, alone=True).items()))
    all_shards = {}
    missing = []
    names = expand_braces(path)
    for name in names:
        shards = _matching(name, listing, alone=False)
        all_shards.update(shards)
        missing += [] if shards else [name]
    if missing:
        raise UserError(
            f"{path}: {len(missing):,} of {len(names):,} are missing, the first {missing[0]}; put them back or "
            "correct the braces"
        )
    return dict(sorted(all_shards.items()))


def _matching(name: str, listing: Callable[[str], dict[str, Entry]], *, alone: bool) -> dict[str, Entry]:
    """The shards that one name without braces stands for.

    If `alone` is set, it is the only name, so its folder need not be listed.
    """
    sign = re.search(r"[*?\[]", name)
    folder, _, last = name.rstrip("/").rpartition("/")
    if alone:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _tars(name, storage.entry(name), listing)
    elif sign is None:
        known = listing(folder).get(last)
        return {} if known is None else _tars(name, known, listing)
    if sign is None:
        return {}
    base, _, _ = name[: sign.start()].rpartition("/")
    folders = [base]
    parts = name[len(base) :].strip("/").split("/")
    for part in parts[:-1]:
        folders = [f"{folder}/{child}" for folder in folders for child in _fitting(listing(folder), part)]
    return {
        (f"{folder}/{file}" if folder else file): entry
        for folder in folders
        for file, entry in _fitting(listing(folder), parts[-1]).items()
        if entry.size is not None
    }


def _tars(name: str, entry: Entry, listing: Callable[[str], dict[str, Entry]]) -> dict[str, Entry]:
    if entry.size is not None:
        return {name: entry}
    tars = _fitting(listing(name), "*.tar").items()
    return {f"{name.rstrip('/')}/{tar}": tar_entry for tar, tar_entry in tars if tar_entry.size is not None}


def _fitting(entries: dict[str, Entry], pattern: str) -> dict[str, Entry]:
    """Entries whose names fit a shell pattern; hidden ones only if it says so."""
    return {
        name: entry
        for name, entry in entries.items()
        if fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
    }


def base_and_pattern(path: epath.PathLike, shards: Collection[str]) -> tuple[str, str]:
    """The folder above all shards that a path names, and the part of the path after it.

    A folder of shards gives the same as its pattern `FOLDER/*.tar`. Copying the folder changes its name alone.

    Args:
      path: as for `find_shards`.
      shards: their names, by `find_shards`.
    """
    name = os.fspath(storage.path(path)).rstrip("/")
    if all(shard.startswith(f"{name}/") for shard in shards):
        return name, "*.tar"
    sign = None if name in shards else re.search(r"[*?\[{]", name)
    base, slash, _ = name[: sign.start() if sign else None].rpartition("/")
    base = base or slash
    return base, name[len(base) :].lstrip("/")
