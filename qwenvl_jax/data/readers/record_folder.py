"""Reads record folders, which `record_writer` writes: one split, by index."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.data.readers.shard_table import Names, ShardTable, and_more
from qwenvl_jax.data.readers.shards import Shards
from qwenvl_jax.data.record_format import MANIFEST, MANIFEST_VERSION, TALLIES, decode_record
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, nearest

_AGAIN = "write the record folder again"


class RecordReader:
    """Random access to one split: `len(reader)`, `reader[i]`. Opening checks names, counts and sizes.

    Args:
      folder: as written by `write_records`.
      split: one of the manifest's.
      verify: also compares every shard's sha256, which reads everything once.
      findings: by the reader of another process (`RecordReader.findings`), which has compared the files with the
        manifest.

    Attributes:
      samples: of all records.
      tasks: of all records, sorted.

    Raises:
      UserError: if the folder, its manifest, the split or a shard is missing, or a shard differs from the manifest.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        split: str = "train",
        *,
        verify: bool = False,
        findings: Mapping[str, Any] | None = None,
    ):
        self.folder = storage.path(folder)
        self.split = split
        if findings:
            self._table = ShardTable.unpacked(findings)
        else:
            summary = self.summary
            if findings is None:
                _check_files(self.folder, summary["shards"], verify)
            _check_counts(self.folder, split, summary)
            self._table = _table(self.folder, summary)
        self.samples = self._table.samples
        self.tasks = self._table.tasks
        self._shards = Shards(self._table.folder, self._table.files, self._table.records_S)

    @property
    def summary(self) -> dict[str, Any]:
        """The split in the manifest, which is read again: with an entry for each shard it may take 200 MB.

        Raises:
          UserError: if the folder, its manifest or the split is missing.
        """
        splits = read_manifest(self.folder)["splits"]
        if self.split not in splits:
            raise UserError(
                f"{self.folder} has no split {self.split!r}, only {', '.join(splits)}{nearest(self.split, splits)}"
            )
        return splits[self.split]

    def __len__(self) -> int:
        return len(self._shards)

    def findings(self) -> dict[str, Any]:
        """The shards, from which another process opens the same folder without a request to the store.

        They are left out for a folder on a disk: each process reads the manifest that its host has there, and `digest`
        shows if it is another one.
        """
        return self._table.packed() if storage.is_remote(self.folder) else {}

    def digest(self) -> str:
        """Hex digits of the checksums of the shards, in their order."""
        return self._table.digest

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return decode_record(self._shards[int(index)])

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def _table(folder: epath.Path, summary: Mapping[str, Any]) -> ShardTable:
    return ShardTable(
        folder=os.fspath(folder),
        files=Names.of([shard["file"] for shard in summary["shards"]]),
        records_S=np.array([shard["records"] for shard in summary["shards"]], np.int64),
        samples=split_samples(summary),
        digest=split_digest(summary),
        tasks=tuple(sorted(summary["tasks"])),
    )


def _check_files(folder: epath.Path, shards: Sequence[Mapping[str, Any]], verify: bool) -> None:
    """Compares names and sizes, and if `verify` is set checksums, with the manifest."""
    sizes = storage.sizes_of(folder, [shard["file"] for shard in shards])
    missing = [shard for shard in shards if shard["file"] not in sizes]
    if missing:
        first = folder / missing[0]["file"]
        raise UserError(f"{first} is missing although the manifest lists it{and_more(len(missing) - 1)}; {_AGAIN}")
    other = [shard for shard in shards if sizes[shard["file"]] != shard["bytes"]]
    if other:
        first = folder / other[0]["file"]
        size = sizes[other[0]["file"]]
        raise UserError(
            f"{first} has {size} bytes, the manifest says {other[0]['bytes']}{and_more(len(other) - 1)}; {_AGAIN}"
        )
    for shard in shards if verify else ():
        path = folder / shard["file"]
        if artifacts.sha256_of(path) != shard["sha256"]:
            raise UserError(f"{path} does not have the sha256 of the manifest; {_AGAIN}")


def _check_counts(folder: epath.Path, split: str, summary: Mapping[str, Any]) -> None:
    """Refuses a split whose shards or tallies do not add up to its totals."""
    records = sum(shard["records"] for shard in summary["shards"])
    stated = summary["records"]
    if records != stated:
        raise UserError(f"{folder} holds {records} records in {split!r}, the manifest says {stated}; {_AGAIN}")
    if "samples" in summary:
        samples = sum(shard["samples"] for shard in summary["shards"])
        if samples != summary["samples"]:
            raise UserError(
                f"{folder} holds {samples} samples in {split!r}, the manifest says {summary['samples']}; {_AGAIN}"
            )
    for key in TALLIES:
        counted = sum(summary[key].values())
        if counted != stated:
            raise UserError(f"the {key} of {split!r} in {folder / MANIFEST} count {counted} of {stated}; {_AGAIN}")


def split_samples(summary: Mapping[str, Any]) -> int:
    """The samples of a split; a manifest from before they were counted has one per record."""
    return int(summary.get("samples", summary["records"]))


def split_digest(summary: Mapping[str, Any]) -> str:
    """sha256 of the checksums and counts of a split's shards in the manifest, in their order, without their names."""
    shards = [[shard["sha256"], shard["records"]] for shard in summary["shards"]]
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """Reads and checks `manifest.json` of a record folder.

    Raises:
      UserError: if the folder or the manifest is missing, the manifest is of another version, or it lists a shard
        twice.
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
    _check_distinct(folder, splits)
    return manifest


def _check_distinct(folder: epath.Path, splits: Mapping[str, Any]) -> None:
    """Refuses a manifest that lists a shard twice: the records of one split would be in another, or twice in one."""
    split_of: dict[str, str] = {}
    for split, summary in splits.items():
        for shard in summary["shards"]:
            file = shard["file"]
            if file in split_of:
                raise UserError(
                    f"{folder / MANIFEST} lists {file} in {split_of[file]!r} and again in {split!r}; build the folder "
                    "again"
                )
            split_of[file] = split


def _is_summary(summary: Any) -> bool:
    """Whether a split of a manifest has the values that are read from it, with the right types."""
    if not isinstance(summary, dict) or not _are_counts([summary.get("records"), summary.get("samples", 0)]):
        return False
    for key in TALLIES:
        if not isinstance(summary.get(key), dict) or not _are_counts(summary[key].values()):
            return False
    shards = summary.get("shards")
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        return False
    texts = [shard.get(key) for key in ("file", "sha256") for shard in shards]
    if not all(isinstance(text, str) and text for text in texts):
        return False
    if any("/" in shard["file"] or "\0" in shard["file"] for shard in shards):
        return False
    counted = ("records", "bytes", "samples") if "samples" in summary else ("records", "bytes")
    return all(_are_counts([shard.get(key) for shard in shards]) for key in counted)


def _are_counts(values: Iterable[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)
