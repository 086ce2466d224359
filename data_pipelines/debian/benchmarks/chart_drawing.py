"""Charts as pictures: bars, columns and pies, on which every value is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

KINDS = ("bars", "columns", "pie")
SIZE = (800, 560)
_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f", "#bab0ac")
_MARGIN = 30
_TITLE = 60  # height of the title


@dataclasses.dataclass(frozen=True)
class Chart:
    """What a chart shows.

    Attributes:
      kind: one of KINDS.
      title: such as "Population, in millions".
      labels: the names of the values.
      values: positive, as they are written.
    """

    kind: str
    title: str
    labels: tuple[str, ...]
    values: tuple[str, ...]


def draw_chart(chart: Chart, font: Path) -> Image.Image:
    """The picture of a chart, with letters of a TrueType font."""
    picture = Image.new("RGB", SIZE, "white")
    canvas = ImageDraw.Draw(picture)
    _text(canvas, (SIZE[0] / 2, _TITLE / 2), chart.title, font, 22, SIZE[0] - 2 * _MARGIN, "mm")
    numbers = [float(value) for value in chart.values]
    {"bars": _bars, "columns": _columns, "pie": _pie}[chart.kind](canvas, chart, numbers, font)
    return picture


def _bars(canvas: ImageDraw.ImageDraw, chart: Chart, numbers: Sequence[float], font: Path) -> None:
    """Horizontal bars with their labels on the left."""
    left, right = 250, SIZE[0] - 110
    step = (SIZE[1] - _TITLE - _MARGIN) / len(numbers)
    for index, number in enumerate(numbers):
        middle = _TITLE + (index + 0.5) * step
        end = left + (right - left) * number / max(numbers)
        canvas.rectangle((left, middle - 0.35 * step, end, middle + 0.35 * step), fill=_colour(index))
        _text(canvas, (left - 10, middle), chart.labels[index], font, 18, left - 20, "rm")
        _text(canvas, (end + 8, middle), chart.values[index], font, 18, 100, "lm")
    canvas.line((left, _TITLE, left, SIZE[1] - _MARGIN), fill="black", width=2)


def _columns(canvas: ImageDraw.ImageDraw, chart: Chart, numbers: Sequence[float], font: Path) -> None:
    """Upright columns; labels are on two levels, so that long ones do not meet."""
    bottom = SIZE[1] - 80
    step = (SIZE[0] - 2 * _MARGIN) / len(numbers)
    for index, number in enumerate(numbers):
        middle = _MARGIN + (index + 0.5) * step
        top = bottom - (bottom - _TITLE - 30) * number / max(numbers)
        canvas.rectangle((middle - 0.35 * step, top, middle + 0.35 * step, bottom), fill=_colour(index))
        _text(canvas, (middle, bottom + 20 + 30 * (index % 2)), chart.labels[index], font, 16, 2 * step - 12, "mm")
        _text(canvas, (middle, top - 14), chart.values[index], font, 16, step, "mm")
    canvas.line((_MARGIN, bottom, SIZE[0] - _MARGIN, bottom), fill="black", width=2)


def _pie(canvas: ImageDraw.ImageDraw, chart: Chart, numbers: Sequence[float], font: Path) -> None:
    """A pie with a legend that has the values."""
    box = (_MARGIN, _TITLE + 20, _MARGIN + 400, _TITLE + 420)
    start = -90.0
    step = (SIZE[1] - _TITLE - 2 * _MARGIN) / len(numbers)
    for index, number in enumerate(numbers):
        end = start + 360 * number / sum(numbers)
        canvas.pieslice(box, start, end, fill=_colour(index), outline="white")
        start = end
        middle = _TITLE + 20 + (index + 0.5) * step
        canvas.rectangle((470, middle - 9, 488, middle + 9), fill=_colour(index))
        _text(canvas, (500, middle), f"{chart.labels[index]}: {chart.values[index]}", font, 18, 290, "lm")


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _text(
    canvas: ImageDraw.ImageDraw,
    where: tuple[float, float],
    text: str,
    path: Path,
    size: int,
    room: float,
    anchor: str,
) -> None:
    """Writes a text, smaller if it would be wider than its room."""
    font = ImageFont.truetype(str(path), size)
    while size > 9 and canvas.textlength(text, font) > room:
        size -= 1
        font = ImageFont.truetype(str(path), size)
    canvas.text(where, text, fill="black", font=font, anchor=anchor)
