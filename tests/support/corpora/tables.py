"""Parquet, JSON, JSONL and tar files with given contents."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], row_group: int = 2) -> Path:
    """A Parquet file of these rows with the columns of the first, in row groups of `row_group` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, path, row_group_size=row_group)
    return path


def write_json(path: Path, value: Any) -> Path:
    """A JSON file of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """A file of one JSON value per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_file(path: Path, payload: bytes) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """An uncompressed tar file of regular members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, payload in members:
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return path
