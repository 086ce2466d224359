"""The format of record folders: names of files, and one record as bytes.

A folder holds `<name>-<split>.array_record-00000-of-0000N`, `manifest.json` (per split: counts, bytes, sha256 per
shard, sources, tasks, licences), and `dataset_info.json` with `features.json`, so that
`tfds.builder_from_directory(folder)` and Grain read the same files. One entry is a serialised `tf.train.Example`
with the fields of `FEATURES`; images stay encoded, `content` is JSON. Nothing here imports TensorFlow.

`record_writer` writes folders, `readers.record_folder` reads them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from google.protobuf.message import DecodeError

# Imported here and not in the function on purpose: importing TFDS patches `__import__`, and doing that in a thread that
# reads records can deadlock with the other ones.
from tensorflow_datasets.proto import tf_example_pb2

from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
# Key of a split's counts in the manifest -> the field of a record that it counts.
TALLIES = {"sources": "source", "tasks": "task", "languages": "language", "licenses": "license"}
TEXT_FIELDS = ("id", "task", "source", "language", "license")
FEATURES = (*TEXT_FIELDS, "images", "content")


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
      UserError: if the bytes are not a record, or it is not well formed (`check_record`).
    """
    try:
        fields = tf_example_pb2.Example.FromString(payload).features.feature
        texts = {name: fields[name].bytes_list.value[0].decode() for name in TEXT_FIELDS}
        content = json.loads(fields["content"].bytes_list.value[0].decode("utf-8", "surrogatepass"))
        record = Record(images=tuple(fields["images"].bytes_list.value), content=content, **texts)
    except (DecodeError, IndexError, ValueError, RecursionError) as error:
        raise UserError(f"these bytes are not a record ({error}); write the record files again") from None
    return check_record(record)


def tfds_features() -> Any:
    """The features of a record as TFDS describes them."""
    import tensorflow_datasets as tfds

    texts = {name: tfds.features.Text() for name in (*TEXT_FIELDS, "content")}
    images = tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3)))
    return tfds.features.FeaturesDict({**texts, "images": images})


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """File name of one shard, in the form TFDS expects."""
    for field, value in (("name", name), ("split", split)):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise UserError(f"the {field} {value!r} of a record folder must be lower-case letters, digits and _")
    digits = max(5, len(str(count)))  # as TFDS has it, so that names sort by their numbers
    return f"{name}-{split}.array_record-{index:0{digits}d}-of-{count:0{digits}d}"
