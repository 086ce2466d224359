"""Captions from WebDataset shards, as LAION, COYO and DataComp are distributed."""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import json
import os
import tarfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.data.images.exact import MAX_BYTES
from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.tar_copies import open_joined
from qwenvl_jax.data.readers.tar_index import FOLDER_VARIABLE, index_folder
from qwenvl_jax.data.readers.tar_joined import Digest, JoinedIndex, LeftOut, SampleLocation, Shard
from qwenvl_jax.data.readers.tar_paths import base_and_pattern, find_shards
from qwenvl_jax.data.readers.tar_samples import LEFT_OUT, ShardIndex, read_caption
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import log, storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.runtime.storage import Entry

_THREADS = 8  # each holds a block of 16 MiB while it reads a shard
_NEAR = 256 << 10  # bytes between image and text that cost less than a second request
_HEADER = tarfile.BLOCKSIZE
_MANY = 1000  # shards whose index a run should not have to make


class TarReader:
    """Random access to the samples of all shards, in the order of names and members: `len(reader)`, `reader[i]`.

    If `python -m qwenvl_jax.index` has joined the indexes of all shards, opening reads the tables of that file alone.
    Otherwise the first opening reads every shard once (`tar_index`), and the index is held in memory. Reading a sample
    is a seek. The number of members and samples that were left out is printed.

    Args:
      path: a folder of `.tar` files, a pattern, or one file.
      findings: by the reader of another process (`TarReader.findings`), instead of looking for the files.

    Attributes:
      samples: how many there are, one per record.
      left_out: how many members, samples or shards, by the keys of `tar_samples.LEFT_OUT`.

    Raises:
      UserError: if there is no shard, one is no uncompressed tar file, no sample can be used, or the joined index is
        damaged or made of other shards.
    """

    def __init__(self, path: epath.PathLike, findings: str | None = None):
        facts = _look(path) if findings is None else _unpacked(findings)
        self._facts = facts
        self._index: JoinedIndex | _SeparateIndexes
        if facts["joined"]:
            self._index = _open_joined(facts["joined"])
            if findings is None:
                _compare(self._index, facts, path)
                facts["entries"] = {}  # the joined index lists the shards
        else:
            self._index = _SeparateIndexes(path, facts["base"], _entries(facts), first=findings is None)
        self.samples = len(self._index)
        self.left_out = collections.Counter(self._index.left_out)
        descriptions = []
        for why, meaning in LEFT_OUT.items():
            if self.left_out[why]:
                shard, name = self._index.first[why]
                example = shard if why == "truncated" else f"{name!r} in {shard}"
                descriptions.append(f"{self.left_out[why]:,} {meaning}, the first {example}")
        summary = "; ".join(descriptions)
        if not self.samples:
            raise UserError(f"{path} has no sample with an image and a caption ({summary or 'it is empty'})")
        if summary:
            log.line(f"{path}: {self.samples:,} samples; left out: {summary}")

    def __len__(self) -> int:
        return self.samples

    def findings(self) -> str:
        """What another process needs to open the same shards: the joined index, or all names and sizes, packed."""
        return base64.b85encode(zlib.compress(json.dumps(self._facts).encode())).decode()

    def digest(self) -> str:
        """Hex digits of the names of all shards, and of the offsets, lengths, languages and names of their samples."""
        return self._index.digest()

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        location = self._index.location(index)
        path = epath.Path(os.path.join(self._facts["base"], self._index.shards[location.shard].name))
        try:
            image, text = _read(path, location)
            caption = read_caption(text, location.is_json)
        except FileNotFoundError:
            raise StorageError(f"{path} was there when it was opened and is gone; put it back") from None
        except ValueError:
            caption = ""
        if not caption:
            raise UserError(f"{path}, member {location.key!r}: the shard has changed since it was indexed; start again")
        return Record(
            id=f"{path.name}:{location.key}",
            task="caption",
            source=path.parent.name or "webdataset",
            language=location.language,
            license="unknown",
            images=(image,),
            content={"caption": caption},
        )


class _SeparateIndexes:
    """The indexes of all shards in memory, with the interface of `JoinedIndex`.

    Args:
      path: of the source, for messages.
      base: the folder above all shards.
      entries: of all shards, by their names below `base`.
      first: whether this process may make many indexes; the others expect to find those that it has made.

    Raises:
      UserError: if more than a thousand shards have no index that this process can see, and it is not the first.
    """

    def __init__(self, path: epath.PathLike, base: str, entries: dict[str, Entry], *, first: bool):
        paths = [epath.Path(os.path.join(base, name)) for name in entries]
        folder = index_folder()

        def load(shard: epath.Path, entry: Entry) -> ShardIndex | None:
            return tar_index.load_index(shard, entry, tar_index.index_paths(shard, folder))

        def make(shard: epath.Path, entry: Entry, index: ShardIndex | None) -> ShardIndex:
            return index or tar_index.index_shard(shard, entry, folder)

        with concurrent.futures.ThreadPoolExecutor(_THREADS, "index") as threads:
            kept = list(threads.map(load, paths, entries.values()))
            missing = kept.count(None)
            if missing > _MANY:
                command = f"`python -m qwenvl_jax.index --path={path}`"
                if not first:
                    raise UserError(
                        f"{path}: this process sees no index for {missing:,} of {len(paths):,} shards, although the "
                        f"first process has made them; run {command} with --index=FOLDER, a folder that all hosts "
                        f"share, and set {FOLDER_VARIABLE} to it"
                    )
                log.line(
                    f"{path}: {missing:,} of {len(paths):,} shards have no index, which is made now; {command} makes "
                    "it on many machines at once"
                )
            indexes = list(threads.map(make, paths, entries.values(), kept))
        left_out = LeftOut()
        for index in indexes:
            left_out.add(index)
        self.left_out = left_out.counts
        self.first = left_out.first
        self.shards = [
            Shard(name, entry.size or 0, entry.checksum, len(index.samples_S))
            for (name, entry), index in zip(entries.items(), indexes, strict=True)
        ]
        self._tables = [index.samples_S for index in indexes]
        self._ends = np.cumsum([shard.samples for shard in self.shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def digest(self) -> str:
        """As `Digest`."""
        digest = Digest()
        for shard, samples_S in zip(self.shards, self._tables, strict=True):
            digest.add(os.path.basename(shard.name), samples_S)
        return digest.hexdigest()

    def location(self, index: int) -> SampleLocation:
        """The location of a sample."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = self._tables[number][index - int(self._ends[number])]  # a negative index counts from the end of the shard
        return SampleLocation(
            shard=number,
            image=int(row["image"]),
            image_size=int(row["image_size"]),
            text=int(row["text"]),
            text_size=int(row["text_size"]),
            is_json=bool(row["json"]),
            language=row["language"].decode(),
            key=row["key"].decode("utf-8", "replace"),
        )


def joined_path(base: str, pattern: str, folder: str) -> epath.Path:
    """The path of the joined index of a source.

    Args:
      base: the folder above all shards (`base_and_pattern`).
      pattern: the rest of the path of the source.
      folder: for all indexes; "" if they are kept with the shards.
    """
    if folder:
        return storage.path(folder) / f"{tar_index.hashed_name(os.path.join(base, pattern))}.joined"
    name = tar_index.hashed_name(f"/{pattern}")[:16]  # of the pattern alone, so that the whole folder may be moved
    return epath.Path(base or ".") / f".shards-{name}.joined"


def checked_entries(shards: dict[str, Entry]) -> dict[str, Entry]:
    """The entries of shards with checksums of their contents.

    Raises:
      UserError: if a shard cannot be read.
    """

    def checked(path: str, entry: Entry) -> Entry:
        try:
            return tar_index.with_checksum(path, entry)
        except OSError as error:
            raise tar_index.unreadable(path, error) from None

    with concurrent.futures.ThreadPoolExecutor(_THREADS, "checksum") as threads:
        return dict(zip(shards, threads.map(checked, shards, shards.values()), strict=True))


def no_shards(path: epath.PathLike) -> UserError:
    """The error for a path at which there is no shard."""
    return UserError(
        f"{path} names no .tar file; give a folder of .tar files, a pattern such as DIR/*.tar, or one file"
    )


def _look(path: epath.PathLike) -> dict[str, Any]:
    """The facts with which a source is opened: its folder, its joined index if there is one, and its shards."""
    shards = find_shards(path)
    if not shards:
        raise no_shards(path)
    base, pattern = base_and_pattern(path, shards)
    joined = joined_path(base, pattern, index_folder())
    return {
        "base": base,
        "joined": str(joined) if storage.exists(joined) else "",
        "entries": {name[len(base) :].lstrip("/"): entry for name, entry in checked_entries(shards).items()},
    }


def _open_joined(path: str) -> JoinedIndex:
    try:
        return open_joined(path)
    except FileNotFoundError:
        raise UserError(
            f"the joined index {path}, which the first process has opened, is not there for this one; keep it in a "
            f"folder that all hosts share, and set {FOLDER_VARIABLE} to it"
        ) from None


def _compare(index: JoinedIndex, facts: dict[str, Any], path: epath.PathLike) -> None:
    """Raises UserError, with the first difference, if a joined index is of other shards than there are."""
    base = facts["base"]
    joined = facts["joined"]
    entries = _entries(facts)
    again = f"run `python -m qwenvl_jax.index --path={path}` again"
    indexed = {shard.name: (shard.size, shard.checksum) for shard in index.shards}
    for name in indexed:
        if name not in entries:
            raise UserError(
                f"{os.path.join(base, name)} is missing, but in the joined index {joined}; put it back, or {again}"
            )
    for name, entry in entries.items():
        if indexed.get(name) != (entry.size or 0, entry.checksum):
            difference = "has changed since" if name in indexed else "is not in"
            raise UserError(f"{os.path.join(base, name)} {difference} the joined index {joined}; {again}")


def _entries(facts: dict[str, Any]) -> dict[str, Entry]:
    return {name: Entry(*values) for name, values in facts["entries"].items()}


def _unpacked(findings: str) -> dict[str, Any]:
    return json.loads(zlib.decompress(base64.b85decode(findings)))


def _read(path: epath.Path, location: SampleLocation) -> tuple[bytes, bytes]:
    """Image and text of a sample: one request if they are near one another.

    Raises:
      ValueError: if the header of one of them states another size than the index.
    """
    image_start = max(0, location.image - _HEADER)
    text_start = max(0, location.text - _HEADER)
    image_end = location.image + min(location.image_size, MAX_BYTES)
    text_end = location.text + location.text_size
    start = min(image_start, text_start)
    end = max(image_end, text_end)
    if end - start > image_end - image_start + text_end - text_start + _NEAR:
        image = storage.read_bytes(path, image_start, image_end - image_start)
        text = storage.read_bytes(path, text_start, text_end - text_start)
    else:
        payload = storage.read_bytes(path, start, end - start)
        image = payload[image_start - start : image_end - start]
        text = payload[text_start - start : text_end - start]
    return _contents(image, location.image_size), _contents(text, location.text_size)


def _contents(member: bytes, size: int) -> bytes:
    """The contents of a member without its header.

    Raises:
      ValueError: if there is no header, or if it states another size. A pax header may state the size instead.
    """
    header = member[:_HEADER]
    try:
        stated = tarfile.nti(header[124:136])  # type: ignore[attr-defined]
    except (tarfile.TarError, IndexError):
        raise ValueError("no header") from None
    if stated and stated != size and size < (1 << 32) - 1:
        raise ValueError("another size")
    return member[_HEADER:]
