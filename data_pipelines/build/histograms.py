"""Histograms of the records that are written: fixed bins, whole numbers, merged in any order.

    {"characters": {"edges": [0, 1, 2, 3, 4, 6, ..], "counts": [..]}, "aspect": {"edges": [[0, 1], [1, 8], ..], ..}, ..}

Bin i counts values from edge i up to the next edge, which is not included; the last bin has no end. The edges of
`aspect`, width / height, are fractions. Records are counted when they are written, after all rules, those across pairs
included.
"""

from __future__ import annotations

import bisect
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from qwenvl_jax.data.evaluation_content import single_contents
from qwenvl_jax.data.images.exact import FORMATS
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import RECORD_TASKS


def _edges(first: int, last: int) -> list[int]:
    """Powers of two and the numbers half-way between them: 1, 2, 3, 4, 6, 8, 12, .."""
    numbers = sorted({1} | {2**power for power in range(1, 31)} | {3 * 2**power for power in range(29)})
    return [number for number in numbers if first <= number <= last]


_RATIOS = ((1, 8), (1, 5), (1, 4), (1, 3), (2, 5), (1, 2), (2, 3), (3, 4), (9, 10))
# Widths that are at most so many times the height, from the narrowest picture to the widest.
ASPECTS = ((0, 1), *_RATIOS, (10, 9), *((high, low) for low, high in reversed(_RATIOS[:-1])))
EDGES: dict[str, list[int]] = {
    "characters": [0, *_edges(1, 1 << 17)],  # of a sample in words (`RecordTask.words`)
    "samples": _edges(1, 1 << 12),  # of a record with pictures
    "width": _edges(1, 1 << 15),  # px, of a picture as stored
    "height": _edges(1, 1 << 15),
    "bytes": [0, *_edges(64, 1 << 28)],  # of an encoded picture
}


class Histograms:
    """The histograms of some records of one task."""

    def __init__(self) -> None:
        self._counts = {name: [0] * len(edges) for name, edges in EDGES.items()}
        self._aspects = [0] * len(ASPECTS)
        self._unreadable = 0

    def add(self, record: Record) -> None:
        """Counts one record."""
        contents = single_contents(record.task, record.content)
        for content in contents:
            self._count("characters", len(RECORD_TASKS[record.task].words(content)))
        if record.images:
            self._count("samples", len(contents))
        for image in record.images:
            self._count("bytes", len(image))
            size = _size_of(image)
            if size is None:
                self._unreadable += 1
                continue
            self._count("width", size[0])
            self._count("height", size[1])
            self._aspects[aspect_bin(*size)] += 1

    def _count(self, name: str, value: int) -> None:
        self._counts[name][bisect.bisect_right(EDGES[name], value) - 1] += 1

    def counted(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records, each of which is counted as it passes."""
        for record in records:
            self.add(record)
            yield record

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        values: dict[str, Any] = {
            name: {"edges": edges, "counts": list(self._counts[name])} for name, edges in EDGES.items()
        }
        values["aspect"] = {"edges": [list(edge) for edge in ASPECTS], "counts": list(self._aspects)}
        return {**values, "unreadable_pictures": self._unreadable}


def merged(histograms: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of the histograms of several sets of records, as JSON."""
    total = Histograms().as_json()
    for part in histograms:
        for name, value in part.items():
            if name == "unreadable_pictures":
                total[name] += value
            else:
                pairs = zip(total[name]["counts"], value["counts"], strict=True)
                total[name]["counts"] = [one + other for one, other in pairs]
    return total


def aspect_bin(width: int, height: int) -> int:
    """The number of the last of `ASPECTS` that width / height reaches, in whole numbers."""
    return max(number for number, (over, under) in enumerate(ASPECTS) if width * under >= over * height)


def _size_of(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a picture as stored; only its header is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as header:
                return header.size
    except Exception:  # Pillow's plugins raise nearly anything on damaged files
        return None
