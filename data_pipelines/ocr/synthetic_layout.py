"""Arranges rows of text on a synthetic document: blocks of columns, one below the other, as SynthDoG does.

for block in stack(rng, Area(40, 50, 700, 900), PageSettings()):
for row in block:
row.x, row.y, row.width, row.height, row.align
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.ocr.synthetic_settings import PageSettings

ALIGNMENTS = ("left", "right", "center")


class Area(NamedTuple):
    """A rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Row:
    """The rectangle of one row of text, in pixels, and the side of it that the text touches."""

    x: float
    y: float
    width: float
    height: float
    align: str


def stack(rng: np.random.Generator, area: Area, settings: PageSettings) -> list[list[Row]]:
    """Blocks from top to bottom, with random free space between; each block's rows column by column.

    No two rows overlap, and all are within `area`.
    """
    shorter = min(area.width, area.height)
    spacing = rng.uniform(*settings.stack_spacing) * shorter
    height = area.height * _share(rng, settings.stack_fill, settings.stack_full)
    fill = _share(rng, settings.fill, settings.full)
    blocks = []
    used = 0.0
    while True:
        row_height = rng.uniform(*settings.text_scale) * shorter
        block = _block(rng, Area(area.x, area.y + used, area.width, height - used), row_height, fill, settings)
        if not block:
            break
        blocks.append(block)
        used = max(row.y + row.height for row in block) - area.y + spacing
    free = max(area.height - max(used - spacing, 0), 0)
    shares = rng.random(len(blocks) + 1)
    moves = np.cumsum(shares * free / max(shares.sum(), 1e-9))
    return [
        [dataclasses.replace(row, y=row.y + move) for row in block] for block, move in zip(blocks, moves, strict=False)
    ]


def _share(rng: np.random.Generator, fill: tuple[float, float], full: float) -> float:
    takes_all = rng.random() < full
    share = rng.uniform(*fill)
    return 1.0 if takes_all else share


def _block(rng: np.random.Generator, area: Area, row_height: float, fill: float, settings: PageSettings) -> list[Row]:
    """Rows of equal height in one to `max_col` columns; empty if the area has no room for one row.

    A column is at least as wide as a row is high, and so is the gap between two columns.
    """
    shape = _shape(rng, area, row_height, settings)
    if shape is None:
        return []
    rows, columns = shape
    least = row_height / area.width  # the share of the width that a column or a gap takes at least
    fill = min(max(fill, 0.0), max(1 - least * (columns - 1), 0.0))
    left, right = [(True, True), (False, True), (True, False)][rng.integers(3)]
    if columns > 1 and rng.integers(4) == 0:
        left = right = False

    # Gaps and columns alternate, beginning and ending with a margin that may be zero.
    shares = np.zeros(2 * columns + 1)
    shares[1:-1] = least
    extra = 1 - rng.random(2 * columns + 1)
    extra[0] *= left
    extra[-1] *= right
    extra[1::2] *= max(fill - shares[1::2].sum(), 0) / extra[1::2].sum()
    extra[::2] *= max(1 - fill - shares[::2].sum(), 0) / max(extra[::2].sum(), 1e-9)
    edges = np.concatenate([[0], np.cumsum(shares + extra)]) * area.width
    placed = []
    for column in range(columns):
        align = ALIGNMENTS[rng.integers(len(ALIGNMENTS))]
        x = area.x + edges[2 * column + 1]
        width = edges[2 * column + 2] - edges[2 * column + 1]
        placed += [Row(x, area.y + number * row_height, width, row_height, align) for number in range(rows)]
    return placed


def _shape(rng: np.random.Generator, area: Area, row_height: float, settings: PageSettings) -> tuple[int, int] | None:
    """A random number of rows and columns for which there is room."""
    for cell in rng.permutation(settings.max_row * settings.max_col):
        rows = int(cell) // settings.max_col + 1
        columns = int(cell) % settings.max_col + 1
        if row_height * (2 * columns - 1) <= area.width and row_height * rows <= area.height:
            return rows, columns
    return None
