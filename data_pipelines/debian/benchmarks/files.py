"""Files of benchmarks as their publishers write them: JSON, tables, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

JPEG_QUALITY = 92


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_table(path: Path, rows: Iterable[Sequence[object]], separator: str) -> None:
    """Writes a table; values with separators, quotes or line breaks are quoted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)


def write_bytes(path: Path, payload: bytes) -> None:
    """Writes a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def jpeg(image: Image.Image) -> bytes:
    """An image as a JPEG; transparent parts become white."""
    if image.mode != "RGB":
        with_alpha = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(with_alpha, mask=with_alpha)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """An image as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
