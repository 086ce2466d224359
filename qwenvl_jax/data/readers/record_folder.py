"""Record files: ArrayRecord shards of one folder, with a manifest of ours and the metadata that TFDS reads.

A folder holds `<name>-<split>.array_record-00000-of-0000N`, `manifest.json` (per split: counts, bytes, sha256 per
shard, sources, tasks, licences), and `dataset_info.json` with `features.json`, so that
`tfds.builder_from_directory(folder)` and Grain read the same files. One entry is a serialised `tf.train.Example`
with the fields of `FEATURES`; images stay encoded, `content` is JSON. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module
from etils import epath
from google.protobuf.message import DecodeError

# Not where it is used: TFDS swaps Python's import while it is imported, and threads that read would block one another.
from tensorflow_datasets.proto import tf_example_pb2

from qwenvl_jax.data.readers.shards import Shards
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, nearest

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
TEXT_FIELDS = ("id", "task", "source", "language", "license")
FEATURES = (*TEXT_FIELDS, "images", "content")

# One record per chunk, so that reading one decodes one; the images inside are compressed already.
_WRITER_OPTIONS = "group_size:1,zstd:1"


@dataclasses.dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard; `write_shard` returns it, `write_manifest` takes it."""

    split: str
    file: str
    records: int
    images: int
    bytes: int
    sha256: str
    sources: dict[str, int]
    tasks: dict[str, int]
    languages: dict[str, int]
    licenses: dict[str, int]


def encode_record(record: Record) -> bytes:
    """Serialises a checked record as a `tf.train.Example`; equal records give equal bytes.

    Raises:
      UserError: if the record is not well formed (`check_record`).
    """
    check_record(record)
    example = tf_example_pb2.Example()
    fields = example.features.feature
    for name in TEXT_FIELDS:
        fields[name].bytes_list.value.append(getattr(record, name).encode())
    fields["images"].bytes_list.value.extend(record.images)
    content = json.dumps(record.content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    fields["content"].bytes_list.value.append(content.encode("utf-8", "surrogatepass"))
    return example.SerializeToString(deterministic=True)


def decode_record(payload: bytes) -> Record:
    """The inverse of `encode_record`; images stay encoded.

    Raises:
      UserError: if the bytes are no record, or it is not well formed (`check_record`).
    """
    try:
        fields = tf_example_pb2.Example.FromString(payload).features.feature
        texts = {name: fields[name].bytes_list.value[0].decode() for name in TEXT_FIELDS}
        content = json.loads(fields["content"].bytes_list.value[0].decode("utf-8", "surrogatepass"))
        record = Record(images=tuple(fields["images"].bytes_list.value), content=content, **texts)
    except (DecodeError, IndexError, ValueError, RecursionError) as error:
        raise UserError(f"these bytes are not a record ({error}); write the record files again") from None
    return check_record(record)


def write_shard(
    folder: epath.PathLike, name: str, split: str, index: int, count: int, records: Iterable[Record]
) -> Shard:
    """Writes shard `index` of `count`, whole or not at all, and returns its line of the manifest.

    For pipelines whose workers write shards on their own; `write_records` does everything at once.

    Raises:
      UserError: for a record that is not well formed, or a folder that is finished: with one more shard it would lie.
    """
    folder = storage.path(folder)
    file = shard_name(name, split, index, count)
    if storage.exists(folder / MANIFEST):
        raise UserError(f"{folder} is a finished record folder already; remove it or choose another one")
    tallies: dict[str, collections.Counter[str]] = {key: collections.Counter() for key in _TALLIES}
    written = images = 0
    with storage.local_output(folder / file) as temporary:  # the writer knows local files only
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(encode_record(record))
                written += 1
                images += len(record.images)
                for key, field in _TALLIES.items():
                    tallies[key][getattr(record, field)] += 1
        finally:
            writer.close()
        digest, size = artifacts.sha256_of(temporary), storage.size(temporary)
    counts = {key: dict(sorted(tally.items())) for key, tally in tallies.items()}
    return Shard(split=split, file=file, records=written, images=images, bytes=size, sha256=digest, **counts)


_TALLIES = {"sources": "source", "tasks": "task", "languages": "language", "licenses": "license"}


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """File name of one shard, in the form TFDS expects."""
    for what, value in (("name", name), ("split", split)):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise UserError(f"the {what} {value!r} of a record folder must be lower-case letters, digits and _")
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_manifest(
    folder: epath.PathLike,
    name: str,
    shards: Sequence[Shard],
    *,
    description: str = "",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the TFDS metadata and, last of all, `manifest.json`: a folder without it is not finished.

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


def tfds_features() -> Any:
    """The features of a record as TFDS describes them."""
    import tensorflow_datasets as tfds

    texts = {name: tfds.features.Text() for name in (*TEXT_FIELDS, "content")}
    images = tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3)))
    return tfds.features.FeaturesDict({**texts, "images": images})


def _split_summary(shards: Sequence[Shard]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "records": sum(shard.records for shard in shards),
        "images": sum(shard.images for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
    }
    for key in _TALLIES:
        total: collections.Counter[str] = collections.Counter()
        for shard in shards:
            total.update(getattr(shard, key))
        summary[key] = dict(sorted(total.items()))
    fields = ("file", "records", "images", "bytes", "sha256")
    summary["shards"] = [{field: getattr(shard, field) for field in fields} for shard in shards]
    return summary


def write_records(
    folder: epath.PathLike,
    splits: Mapping[str, Iterable[Record]],
    *,
    name: str,
    records_per_shard: int = 4096,
    description: str = "",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a whole record folder in the order given and returns its manifest.

    On a disk the folder appears under its own name only when it is complete; one that was there before is replaced.
    An object store has no renaming of folders: what was there is removed, its manifest first, and the new manifest is
    written last of all.

    Args:
      splits: e.g. {"train": records, "test": records}; any iterables.
      name: of the data set, lower-case.

    Raises:
      UserError: for a record that is not well formed, or a split without records.
    """
    folder = storage.path(folder)
    unique = uuid.uuid4().hex[:8]
    building = folder.parent / f".{folder.name}.{unique}.tmp"
    final = folder if storage.is_remote(folder) else building
    try:
        built: list[tuple[epath.Path, Shard]] = []
        for split, records in splits.items():
            members = [
                write_shard(building, name, split, index, 99999, group)
                for index, group in enumerate(_groups(records, records_per_shard))
            ]
            if not members:
                raise UserError(f"split {split!r} of {folder} has no records; leave it out")
            for index, shard in enumerate(members):  # only now is the number of shards known
                file = shard_name(name, split, index, len(members))
                built.append((building / shard.file, dataclasses.replace(shard, file=file)))
        if final == folder:
            storage.remove(folder)
        for path, shard in built:
            storage.rename(path, final / shard.file)
        shards = [shard for _, shard in built]
        write_manifest(final, name, shards, description=description, extra=extra)
        if final != folder:
            artifacts.replace_folder(building, folder)
    except BaseException:
        storage.remove(building)
        raise
    return artifacts.read_json(folder / MANIFEST)


def _groups(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    group: list[Record] = []
    for record in records:
        group.append(record)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class RecordReader:
    """Random access to one split: `len(reader)`, `reader[i]`. Opening checks names, counts and sizes.

    Args:
      folder: as written by `write_records`.
      split: one of the manifest's.
      verify: also compares every shard's sha256, which reads everything once.
      check: whether to look at the shards at all, by one listing of the folder; False where another process has done
        so.

    Raises:
      UserError: if the folder, its manifest, the split or a shard is missing, or a shard is not the manifest's.
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
        sizes, again = storage.sizes(self.folder), "write the record folder again"
        for shard in self.summary["shards"]:
            path, found = self.folder / shard["file"], sizes.get(shard["file"])
            if found is None:
                raise UserError(f"{path} is missing although the manifest lists it; {again}")
            if found != shard["bytes"]:
                raise UserError(f"{path} has {found} bytes, the manifest says {shard['bytes']}; {again}")
            if verify and artifacts.sha256_of(path) != shard["sha256"]:
                raise UserError(f"{path} does not have the sha256 of the manifest; {again}")

    def __len__(self) -> int:
        return len(self._source)

    def findings(self) -> str:
        """What another process needs to open the same: that this one has found the shards of the manifest."""
        return self.digest()

    def digest(self) -> str:
        """Of the checksums of the shards, in their order."""
        return split_digest(self.summary)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return decode_record(self._source[int(index)])

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def split_digest(summary: Mapping[str, Any]) -> str:
    """sha256 over what the manifest says of the shards of a split, in their order; their names do not count."""
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
    """Whether this is what `_split_summary` writes, as far as it is read again."""

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
        and all(isinstance(summary.get(key), dict) for key in _TALLIES)
        and isinstance(summary.get("shards"), list)
        and all(map(is_shard, summary["shards"]))
    )
