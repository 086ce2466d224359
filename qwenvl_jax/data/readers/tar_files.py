"""Captions from WebDataset shards, as LAION, COYO and DataComp are distributed."""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable

import numpy as np
from etils import epath

from qwenvl_jax.data.images.exact import MAX_BYTES
from qwenvl_jax.data.readers.paths import expand_braces
from qwenvl_jax.data.readers.tar_index import LEFT_OUT, index_shard, read_caption
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import log, storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.runtime.storage import Entry

_INDEX_THREADS = 8
_NEAR = 256 << 10  # bytes between image and text that cost less than a second request


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
        raise UserError(f"{path}: {len(missing):,} of {len(names):,} are missing, the first {missing[0]}; correct one")
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


class TarReader:
    """Random access to the samples of all shards, in the order of names and members: `len(reader)`, `reader[i]`.

    The first opening reads the headers and texts of every shard (`tar_index`); reading a sample is a seek. What was
    left out is printed.

    Args:
      path: a folder of `.tar` files, a pattern, or one file.
      findings: by the reader of another process (`TarReader.findings`), instead of looking for the files.

    Attributes:
      left_out: how many members, samples or shards, by the keys of `tar_index.LEFT_OUT`.

    Raises:
      UserError: if there is no shard, one is no uncompressed tar file, or no sample can be used.
    """

    def __init__(self, path: epath.PathLike, findings: str | None = None):
        shards = find_shards(path) if findings is None else _unpacked(findings)
        self._entries = shards
        if not shards:
            raise UserError(f"{path} names no .tar file; give a folder of them, a pattern such as DIR/*.tar, or one")
        with concurrent.futures.ThreadPoolExecutor(_INDEX_THREADS, "index") as threads:
            self._shards = list(threads.map(index_shard, map(epath.Path, shards), shards.values()))
        self._ends = np.cumsum([len(shard.samples_S) for shard in self._shards])
        self.left_out: collections.Counter[str] = collections.Counter()
        said = []
        for why, meaning in LEFT_OUT.items():
            having = [shard for shard in self._shards if shard.left_out[why]]
            self.left_out[why] = sum(shard.left_out[why] for shard in having)
            if having:
                where = having[0].path.name
                name = having[0].first[why]
                example = where if why == "truncated" else f"{name!r} in {where}"
                said.append(f"{self.left_out[why]:,} {meaning}, the first {example}")
        if not len(self):
            raise UserError(f"{path} has no sample with an image and a caption ({'; '.join(said) or 'it is empty'})")
        if said:
            log.line(f"{path}: {len(self):,} samples; left out: {'; '.join(said)}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def samples(self) -> int:
        """How many samples there are: one per record."""
        return len(self)

    def findings(self) -> str:
        """What another process needs to open the same shards: names, sizes and times, packed."""
        return base64.b85encode(zlib.compress(json.dumps(self._entries).encode())).decode()

    def digest(self) -> str:
        """Hex digits of the names of all shards, and of the offsets, lengths, languages and names of their samples."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(f"{shard.path.name}:{len(shard.samples_S)};".encode())
            for field in shard.samples_S.dtype.names or ():
                digest.update(shard.samples_S[field].tobytes())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        row = shard.samples_S[index - int(self._ends[number])]  # from the end: what precedes cancels out
        key = row["key"].decode("utf-8", "replace")
        try:
            image, text = _read(shard.path, row)
            caption = read_caption(text, bool(row["json"]))
        except FileNotFoundError:
            raise StorageError(f"{shard.path} was there when it was opened and is gone; put it back") from None
        except ValueError:
            caption = ""
        if not caption:
            raise UserError(f"{shard.path}, member {key!r}: the shard has changed since it was indexed; start again")
        return Record(
            id=f"{shard.path.name}:{key}",
            task="caption",
            source=shard.path.parent.name or "webdataset",
            language=row["language"].decode(),
            license="unknown",
            images=(image,),
            content={"caption": caption},
        )


def _read(path: epath.Path, row: np.void) -> tuple[bytes, bytes]:
    """Image and text of a sample: one request if they lie near one another."""
    image = int(row["image"])
    text = int(row["text"])
    image_end = image + min(int(row["image_size"]), MAX_BYTES)
    text_end = text + int(row["text_size"])
    if max(image_end, text_end) - min(image, text) > image_end - image + text_end - text + _NEAR:
        return storage.read_bytes(path, image, image_end - image), storage.read_bytes(path, text, text_end - text)
    start = min(image, text)
    payload = storage.read_bytes(path, start, max(image_end, text_end) - start)
    return payload[image - start : image_end - start], payload[text - start : text_end - start]


def _unpacked(findings: str) -> dict[str, Entry]:
    return {name: Entry(*facts) for name, facts in json.loads(zlib.decompress(base64.b85decode(findings))).items()}
