"""Writes small sources of every kind, and says which examples they hold."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenvl_jax.data.readers.source import Source
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from tests.data.record_samples import encoded_image

BOMB_SIDE = 14_000  # squared, more pixels than an image may have
SIZE = {"width": 28, "height": 28}  # of `record_samples.encoded_image`


def bomb() -> bytes:
    """A PNG of few bytes that says it has 196 million pixels."""
    from PIL import Image

    payload = io.BytesIO()
    Image.new("1", (BOMB_SIDE, BOMB_SIDE)).save(payload, "PNG")
    return payload.getvalue()


def bad_images() -> dict[str, bytes]:
    return {"empty": b"", "text": b"<html>404</html>", "cut": encoded_image(1)[:90], "bomb": bomb()}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """An uncompressed tar file with these regular members."""
    with tarfile.open(path, "w") as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return path


def tar_sample(k: int) -> list[tuple[str, bytes]]:
    """The members of sample `k` of a shard; every second one has JSON."""
    members = [(f"{k:05d}.png", encoded_image(k)), (f"{k:05d}.txt", f" caption {k}\n".encode())]
    return [*members, (f"{k:05d}.json", json.dumps({"key": k}).encode())] if k % 2 else members


def records_of(reader: Source) -> list[Record]:
    """All records, by their index."""
    return [reader[index] for index in range(len(reader))]


def write_jsonl(path: Path, values: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
    return path


def line_of(record: Record, folder: Path) -> dict[str, Any]:
    """The JSONL line of a record; its images are written into `folder`/images."""
    (folder / "images").mkdir(exist_ok=True)
    paths = []
    for k, image in enumerate(record.images):
        paths.append(f"images/{record.id}_{k}.png")
        (folder / paths[-1]).write_bytes(image)
    common = {"id": record.id, "task": record.task, "language": record.language, "images": paths}
    return {**common, "source": record.source, "license": record.license, **record.content}


def write_tfds(root: Path, records: Iterable[Record]) -> str:
    """A record folder where TFDS looks for data sets; returns the name of the source."""
    write_records(root / "small" / "1.0.0", {"train": records}, name="small", records_per_shard=7)
    return f"tfds:small:1.0.0@{root}"


def turn(value: str, role: str = "user") -> dict[str, Any]:
    """A line with a conversation of one turn, and what the other says to it."""
    return {"conversations": [{"from": role, "value": value}, {"from": "assistant", "value": "Yes."}]}
