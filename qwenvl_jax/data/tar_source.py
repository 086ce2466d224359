"""Captions from WebDataset shards, as LAION, COYO and DataComp are distributed."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import os

import numpy as np
from etils import epath

from qwenvl_jax.data.image import read_encoded
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.source_paths import expand_braces
from qwenvl_jax.data.tar_index import LEFT_OUT, index_shard, read_caption
from qwenvl_jax.runtime import log, storage
from qwenvl_jax.runtime.errors import UserError

_INDEX_THREADS = 8


def find_shards(path: epath.PathLike) -> list[epath.Path]:
    """The tar files of a folder, a pattern such as `/data/laion/*.tar` or `{000..127}.tar`, or one file, by name.

    Raises:
      UserError: if braces name shards of which some are missing.
    """
    path = os.fspath(path)
    # A file of a disk may have braces in its name; on an object store they are a pattern.
    if "{" not in path or (not storage.is_remote(path) and storage.exists(path)):
        return _matching(path)
    found, missing = [], []
    names = expand_braces(path)
    for name in names:
        # An object store is not asked about every shard: reading its headers says the same.
        written_out = storage.is_remote(name) and name.endswith(".tar") and not any(sign in name for sign in "*?[")
        shards = [epath.Path(name)] if written_out else _matching(name)
        found += shards
        missing += [] if shards else [name]
    if missing:
        raise UserError(f"{path}: {len(missing):,} of {len(names):,} are missing, the first {missing[0]}; correct one")
    return sorted(set(found))


def _matching(name: str) -> list[epath.Path]:
    path = epath.Path(name)
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if path.exists():
        return [path]
    at = next((k for k, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), None)
    return [] if at is None else sorted(epath.Path(*path.parts[:at]).glob("/".join(path.parts[at:])))


class TarReader:
    """Random access to the samples of all shards, in the order of names and members: `len(reader)`, `reader[i]`.

    The first opening reads the headers and texts of every shard (`tar_index`); reading a sample is a seek. What was
    left out is printed.

    Args:
      path: a folder of `.tar` files, a pattern, or one file.

    Attributes:
      left_out: how many members, samples or shards, by the keys of `tar_index.LEFT_OUT`.

    Raises:
      UserError: if there is no shard, one is no uncompressed tar file, or no sample can be used.
    """

    def __init__(self, path: epath.PathLike):
        shards = find_shards(path)
        if not shards:
            raise UserError(f"{path} names no .tar file; give a folder of them, a pattern such as DIR/*.tar, or one")
        with concurrent.futures.ThreadPoolExecutor(_INDEX_THREADS, "index") as threads:
            self._shards = list(threads.map(index_shard, shards))
        self._ends = np.cumsum([len(shard.samples_S) for shard in self._shards])
        self.left_out: collections.Counter[str] = collections.Counter()
        said = []
        for why, meaning in LEFT_OUT.items():
            having = [shard for shard in self._shards if shard.left_out[why]]
            self.left_out[why] = sum(shard.left_out[why] for shard in having)
            if having:
                where, name = having[0].path.name, having[0].first[why]
                example = where if why == "truncated" else f"{name!r} in {where}"
                said.append(f"{self.left_out[why]:,} {meaning}, the first {example}")
        if not len(self):
            raise UserError(f"{path} has no sample with an image and a caption ({'; '.join(said) or 'it is empty'})")
        if said:
            log.line(f"{path}: {len(self):,} samples; left out: {'; '.join(said)}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def digest(self) -> str:
        """Of the names of all shards, and of places, lengths, languages and names of their samples."""
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
            with shard.path.open("rb") as file:
                file.seek(int(row["image"]))
                image = read_encoded(file, int(row["image_size"]))
                file.seek(int(row["text"]))
                text = file.read(int(row["text_size"]))
            caption = read_caption(text, bool(row["json"]))
        except OSError as error:
            raise UserError(f"{shard.path}, member {key!r}: it cannot be read ({error})") from None
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
