"""OCR records: all lines that are written in a picture, in the order of the pair."""

from __future__ import annotations

from data_pipelines.compose.record import points_in, record_of, size_of
from data_pipelines.pair import RawPair
from qwenvl_jax.data.schema import Record


def ocr(pair: RawPair) -> Record | None:
    """The picture with its lines and their quadrilaterals."""
    if not pair.lines:
        return None
    size = size_of(pair)
    lines = []
    for line in pair.lines:
        points = points_in([coordinate for corner in line.quad for coordinate in corner], size, "the quadrilateral")
        lines.append({"text": line.text, "quad": [points[k : k + 2] for k in range(0, 8, 2)]})
    return record_of(pair, "ocr", [{"lines": lines}], size)
