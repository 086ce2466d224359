"""Writes record folders: ArrayRecord shards, the metadata of TFDS, and the manifest. See `record_format`."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module
from etils import epath

from qwenvl_jax.data.record_format import (
    MANIFEST,
    MANIFEST_VERSION,
    TALLIES,
    encode_record,
    shard_name,
    tfds_features,
)
from qwenvl_jax.data.schema import Record, sample_count
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

# One record per chunk, so that reading one decodes one. The images inside are already compressed.
_WRITER_OPTIONS = "group_size:1,zstd:1"

# 1.4 billion records with pictures of 45 kB are 120,000 shards of this size, with 12,000 records each. Smaller shards
# take longer to list and to open, larger ones longer to write again if a worker fails.
BYTES_PER_SHARD = 512 << 20


@dataclasses.dataclass(frozen=True)
class Shard:
    """The entry of one shard in the manifest; `write_shard` returns it, `write_manifest` takes it."""

    split: str
    file: str
    records: int
    samples: int
    images: int
    bytes: int
    sha256: str
    sources: dict[str, int]
    tasks: dict[str, int]
    languages: dict[str, int]
    licenses: dict[str, int]


def write_shard(
    folder: epath.PathLike, name: str, split: str, index: int, count: int, records: Iterable[Record]
) -> Shard:
    """Writes shard `index` of `count`, whole or not at all, and returns its entry of the manifest.

    For pipelines whose workers write shards independently; `write_records` writes a whole folder.

    Raises:
      UserError: for a record that is not well formed, or a folder that is already finished: its manifest would no
        longer be true.
    """
    folder = storage.path(folder)
    if storage.exists(folder / MANIFEST):
        raise UserError(f"{folder} is a finished record folder already; remove it or choose another one")
    return _write_shard(folder, shard_name(name, split, index, count), split, records)


def _write_shard(
    folder: epath.Path,
    file: str,
    split: str,
    records: Iterable[Record],
    most_bytes: float = math.inf,
    most_records: float = math.inf,
) -> Shard:
    """Writes records into one file until none is left or a limit is reached; then it takes no further record."""
    tallies: dict[str, collections.Counter[str]] = {key: collections.Counter() for key in TALLIES}
    written = 0
    written_bytes = 0
    samples = 0
    images = 0
    with storage.local_output(folder / file) as temporary:  # the writer can only write local files
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            for record in records:
                payload = encode_record(record)
                writer.write(payload)
                written += 1
                written_bytes += len(payload)
                samples += sample_count(record)
                images += len(record.images)
                for key, field in TALLIES.items():
                    tallies[key][getattr(record, field)] += 1
                if written_bytes >= most_bytes or written >= most_records:
                    break
        finally:
            writer.close()
        digest = artifacts.sha256_of(temporary)
        size = storage.size(temporary)
    counts = {key: dict(sorted(tally.items())) for key, tally in tallies.items()}
    return Shard(split, file, written, samples, images, size, digest, **counts)


def write_manifest(
    folder: epath.PathLike,
    name: str,
    shards: Sequence[Shard],
    *,
    description: str = "",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the TFDS metadata and then `manifest.json`: a folder without a manifest is not finished.

    Args:
      shards: of all splits, as returned by `write_shard`.
      description: one line about the data.
      extra: JSON values kept under "extra", such as the counts of cleaning rules.
    """
    import tensorflow_datasets as tfds

    folder = storage.path(folder)
    splits: dict[str, list[Shard]] = {}
    for shard in sorted(shards, key=lambda shard: shard.file):
        splits.setdefault(shard.split, []).append(shard)
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix="array_record")
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in members],
            num_bytes=sum(shard.bytes for shard in members),
            filename_template=template.replace(split=split),
        )
        for split, members in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds_features(),
        split_infos=infos,
        filename_template=template,
        check_data=False,
        description=description or name,
    )
    manifest = {
        "version": MANIFEST_VERSION,
        "name": name,
        "description": description,
        "splits": {split: _split_summary(members) for split, members in splits.items()},
        "extra": dict(extra or {}),
    }
    artifacts.write_json(folder / MANIFEST, manifest)


def _split_summary(shards: Sequence[Shard]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "records": sum(shard.records for shard in shards),
        "samples": sum(shard.samples for shard in shards),
        "images": sum(shard.images for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
    }
    for key in TALLIES:
        total: collections.Counter[str] = collections.Counter()
        for shard in shards:
            total.update(getattr(shard, key))
        summary[key] = dict(sorted(total.items()))
    fields = ("file", "records", "samples", "images", "bytes", "sha256")
    summary["shards"] = [{field: getattr(shard, field) for field in fields} for shard in shards]
    return summary


def write_records(
    folder: epath.PathLike,
    splits: Mapping[str, Iterable[Record]],
    *,
    name: str,
    bytes_per_shard: int = BYTES_PER_SHARD,
    records_per_shard: int | None = None,
    description: str = "",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a whole record folder in the order given and returns its manifest.

    On a disk the folder gets its name when it is complete, and replaces an existing folder of that name. An object
    store cannot rename folders: the existing folder is removed, its manifest first, and the new manifest is written
    last.

    Args:
      splits: e.g. {"train": records, "test": records}; any iterables.
      name: of the data set, lower-case.
      bytes_per_shard: a shard ends with the record that brings its serialised records to this size, before compression.
      records_per_shard: a shard ends after this many records as well, if given.

    Raises:
      UserError: for a record that is not well formed, or a split without records.
    """
    folder = storage.path(folder)

    def fill(building: epath.Path, final: epath.Path) -> None:
        built: list[tuple[epath.Path, Shard]] = []
        for split, records in splits.items():
            members = list(_written(building, name, split, records, bytes_per_shard, records_per_shard or math.inf))
            if not members:
                raise UserError(f"split {split!r} of {folder} has no records; leave it out")
            for index, shard in enumerate(members):  # the number of shards is known only now
                file = shard_name(name, split, index, len(members))
                built.append((building / shard.file, dataclasses.replace(shard, file=file)))
        if final != building:
            storage.remove(final)
        for path, shard in built:
            storage.rename(path, final / shard.file)
        write_manifest(final, name, [shard for _, shard in built], description=description, extra=extra)

    if storage.is_remote(folder):
        building = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
        with artifacts.undone_on_failure(building):
            fill(building, folder)
    else:
        with artifacts.built_beside(folder) as building:
            fill(building, building)
    return artifacts.read_json(folder / MANIFEST)


def _written(
    folder: epath.Path, name: str, split: str, records: Iterable[Record], most_bytes: int, most_records: float
) -> Iterator[Shard]:
    """Writes the shards of a split under names that do not tell their number yet; records are not held in memory."""
    following = iter(records)
    for index, first in enumerate(following):
        file = shard_name(name, split, index, 99999)
        yield _write_shard(folder, file, split, itertools.chain([first], following), most_bytes, most_records)
