"""Damaged records and pictures, made from good ones."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from qwenvl_jax.data.record_format import encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record


def write_payloads(folder: Path, payloads: Sequence[bytes], like: Record, split: str = "train") -> Path:
    """A record folder of one shard with these bytes as its records, whatever they are; its manifest is in order."""
    write_records(folder, {split: [like] * len(payloads)}, name="damage")
    [shard] = folder.glob("*array_record*")
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1,zstd:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    amend(folder)
    return folder


def amend(folder: Path) -> None:
    """Lets the manifest of a folder say what its shards are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in (shard for split in manifest["splits"].values() for shard in split["shards"]):
        payload = (folder / shard["file"]).read_bytes()
        shard |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def with_content(record: Record, content: object) -> bytes:
    """The bytes of a record with another content, which no check has seen."""
    example = tf_example_pb2.Example.FromString(encode_record(record))
    example.features.feature["content"].bytes_list.value[0] = json.dumps(content).encode()
    return example.SerializeToString()


def without_images(record: Record) -> bytes:
    example = tf_example_pb2.Example.FromString(encode_record(record))
    del example.features.feature["images"].bytes_list.value[:]
    return example.SerializeToString()


def flip(path: Path, text: bytes) -> None:
    """Changes one bit of a file inside of some text, which must stand there once."""
    payload = bytearray(path.read_bytes())
    assert payload.count(text) == 1
    payload[payload.index(text) + len(text) // 2] ^= 1
    path.write_bytes(payload)


def endless_gif(megabytes: int) -> bytes:
    """A GIF of 8 x 8 pixels with a comment that Pillow copies anew with every piece: 16 MB take half a minute."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    payload = file.getvalue()
    at = payload.index(b"\x2c")
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * (megabytes << 12) + b"\0"
    return payload[:at] + comment + payload[at:]
