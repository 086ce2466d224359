"""Reads record folders, which `record_writer` writes: one split, by index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from qwenvl_jax.data.readers.shards import Shards
from qwenvl_jax.data.record_format import MANIFEST, MANIFEST_VERSION, TALLIES, decode_record
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, nearest


class RecordReader:
    """Random access to one split: `len(reader)`, `reader[i]`. Opening checks names, counts and sizes.

    Args:
      folder: as written by `write_records`.
      split: one of the manifest's.
      verify: also compares every shard's sha256, which reads everything once.
      check: whether to compare the files with the manifest, by one listing of the folder; False if another process
        has done so.

    Raises:
      UserError: if the folder, its manifest, the split or a shard is missing, or a shard differs from the manifest.
    """

    def __init__(self, folder: epath.PathLike, split: str = "train", *, verify: bool = False, check: bool = True):
        self.folder = storage.path(folder)
        self.manifest = read_manifest(self.folder)
        splits = self.manifest["splits"]
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}, only {', '.join(splits)}{nearest(split, splits)}")
        self.split = split
        self.summary: dict[str, Any] = splits[split]
        shards = self.summary["shards"]
        if check:
            self._check(verify)
        self._source = Shards([self.folder / shard["file"] for shard in shards], [shard["records"] for shard in shards])
        if len(self._source) != self.summary["records"]:
            raise UserError(
                f"{folder} holds {len(self._source)} records in {split!r}, the manifest says "
                f"{self.summary['records']}; write the record folder again"
            )

    def _check(self, verify: bool) -> None:
        sizes = storage.sizes(self.folder)
        again = "write the record folder again"
        for shard in self.summary["shards"]:
            path = self.folder / shard["file"]
            size = sizes.get(shard["file"])
            if size is None:
                raise UserError(f"{path} is missing although the manifest lists it; {again}")
            if size != shard["bytes"]:
                raise UserError(f"{path} has {size} bytes, the manifest says {shard['bytes']}; {again}")
            if verify and artifacts.sha256_of(path) != shard["sha256"]:
                raise UserError(f"{path} does not have the sha256 of the manifest; {again}")

    def __len__(self) -> int:
        return len(self._source)

    def findings(self) -> str:
        """For another process that opens the same folder: the shards of the manifest are there."""
        return self.digest()

    def digest(self) -> str:
        """Hex digits of the checksums of the shards, in their order."""
        return split_digest(self.summary)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return decode_record(self._source[int(index)])

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def split_digest(summary: Mapping[str, Any]) -> str:
    """sha256 of the checksums and counts of a split's shards in the manifest, in their order, without their names."""
    shards = [[shard["sha256"], shard["records"]] for shard in summary["shards"]]
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """Reads and checks `manifest.json` of a record folder.

    Raises:
      UserError: if the folder or the manifest is missing, or the manifest is of another version.
    """
    folder = storage.path(folder)
    if not storage.exists(folder / MANIFEST):
        if not storage.exists(folder):
            raise UserError(
                f"the record folder {folder} does not exist; build it with data_pipelines or correct the path"
            )
        raise UserError(f"{folder} has no {MANIFEST}, so it is not a finished record folder; build it again")
    manifest = artifacts.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("version") != MANIFEST_VERSION or "splits" not in manifest:
        raise UserError(f"{folder / MANIFEST} is not a manifest of version {MANIFEST_VERSION}; build the folder again")
    splits = manifest["splits"]
    if not isinstance(splits, dict) or not all(map(_is_summary, splits.values())):
        raise UserError(f"{folder / MANIFEST} is damaged; copy it or build the folder again")
    return manifest


def _is_summary(summary: Any) -> bool:
    """Whether a split of a manifest has the values that are read from it, with the right types."""

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 63

    def is_shard(shard: Any) -> bool:
        texts = (shard.get("file"), shard.get("sha256")) if isinstance(shard, dict) else (None,)
        if not all(isinstance(text, str) and text for text in texts):
            return False
        return not set(shard["file"]) & set("/\0") and is_count(shard.get("records")) and is_count(shard.get("bytes"))

    return (
        isinstance(summary, dict)
        and is_count(summary.get("records"))
        and all(isinstance(summary.get(key), dict) for key in TALLIES)
        and isinstance(summary.get("shards"), list)
        and all(map(is_shard, summary["shards"]))
    )
