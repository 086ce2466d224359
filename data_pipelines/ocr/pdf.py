"""Pages of PDF files as pictures with their lines of text (paper, A.4), rendered in a child process.

    for page in read_pages("report.pdf", PdfSettings()):
        page.picture.encoded, page.lines            # or a FailedRow

pdfium's order is the order of the document. Its boxes hold the ink of every character, and it maps them to the picture
itself, after the page's rotation and crop box. A character that leaves no ink (white on white, covered, invisible like
the recognised text of a scan) or is cut off by the crop box is not taught.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from data_pipelines.ocr.worker import Worker, WorkerFailed, lent
from data_pipelines.pair import FailedRow, Line, Picture, Quad
from qwenvl_jax.runtime import storage

WORKER = "data_pipelines.ocr.pdf_worker"
INK = 24  # least difference between the lightest and the darkest pixel of a visible character, of 255
_GAP = 1.8  # line heights; a wider gap divides columns
_OF_FONT = 0.6  # height of the ink of a line of text, of the height of its font
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_WRITTEN = str.maketrans({**_LIGATURES, 0x00AD: "-", 0x00A0: " "})


@dataclasses.dataclass(frozen=True)
class PdfSettings:
    """How PDF files are read.

    Attributes:
      dpi: resolution of the pictures; at 144 the text of 9 points is 18 pixels high.
      most_pixels: of a picture; a larger page fails.
      most_pages: of a file; the pages after them are one failed row.
      quality: of the JPEG.
      timeout_s: for one page.
    """

    dpi: int = 144
    most_pixels: int = 25_000_000
    most_pages: int = 1000
    quality: int = 90
    timeout_s: float = 60


@dataclasses.dataclass(frozen=True)
class RenderedPage:
    """A page: its number from 0, its picture, and its lines in the order of the document."""

    number: int
    picture: Picture
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Character:
    """A visible character.

    Attributes:
      text: one character.
      box: on the picture.
      turn: its direction in quarter turns clockwise.
      height: the least height of its line in pixels, because the ink of a full stop says little about its line.
    """

    text: str
    box: tuple[float, float, float, float]
    turn: int
    height: float = 4.0


def read_pages(file: epath.PathLike, settings: PdfSettings) -> Iterator[RenderedPage | FailedRow]:
    """All pages of a file in order. A file that cannot be opened is one failed row."""
    with storage.local_copy(file) as copy, lent(WORKER) as worker:
        path = os.fspath(copy)
        opened = _ask(worker, {"file": path}, settings)
        if isinstance(opened, FailedRow):
            yield opened
            return
        pages = opened[0]["pages"]
        for number in range(min(pages, settings.most_pages)):
            request = {"file": path, "page": number, "dpi": settings.dpi, "quality": settings.quality}
            answered = _ask(worker, {**request, "most_pixels": settings.most_pixels}, settings)
            yield answered if isinstance(answered, FailedRow) else _page(number, *answered)
        if pages > settings.most_pages:
            yield FailedRow("too many pages", f"{pages} pages; those after {settings.most_pages} are not read")


def _ask(worker: Worker, request: dict[str, Any], settings: PdfSettings) -> tuple[dict[str, Any], bytes] | FailedRow:
    try:
        answer, payload = worker.ask(request, settings.timeout_s)
    except WorkerFailed as error:
        return FailedRow(error.reason, error.detail)
    if "failed" in answer:
        return FailedRow(answer["failed"], answer["detail"])
    return answer, payload


def _page(number: int, answer: dict[str, Any], payload: bytes) -> RenderedPage | FailedRow:
    width, height = answer["width"], answer["height"]
    characters: list[Character | str] = []
    for text, x1, y1, x2, y2, turn, ink, font_height in answer["characters"]:
        if text.isspace():
            characters.append(text)
        elif ink >= INK and x1 >= -1 and y1 >= -1 and x2 <= width + 1 and y2 <= height + 1:
            if turn < 0:
                return FailedRow("slanted text", f"{text!r}")
            characters.append(Character(text, (x1, y1, x2, y2), turn, max(4.0, _OF_FONT * font_height)))
    lines = tuple(lines_of(characters, width, height))
    return RenderedPage(number, Picture(payload, width=width, height=height), lines)


def lines_of(characters: Sequence[Character | str], width: int, height: int) -> Iterator[Line]:
    """The lines of text: characters that follow one another in one direction at about one height without a wide gap.

    Args:
      characters: visible ones, and spaces or line breaks between them.
      width, height: of the picture, which the quadrilaterals keep to.
    """
    line: list[Character | str] = []
    around: tuple[float, float, float, float] | None = None
    turn = 0
    for character in itertools.chain(characters, "\n"):
        if isinstance(character, str):
            if character != "\n":
                line.append(character)
                continue
            if around is not None:
                yield _line(line, around, turn, width, height)
            line, around = [], None
            continue
        box = _turned(character.box, -character.turn)
        if around is not None and (character.turn != turn or not _continues(around, box, character.height)):
            yield _line(line, around, turn, width, height)
            line, around = [], None
        turn = character.turn
        around = box if around is None else _union(around, box)
        line.append(character)


def _continues(around: tuple[float, ...], box: tuple[float, ...], least: float) -> bool:
    """Whether a box continues a line of at least that height to the right; both boxes are in the line's direction."""
    tall = max(around[3] - around[1], box[3] - box[1], least)
    apart = max(box[1] - around[3], around[1] - box[3])
    gap = box[0] - around[2]
    return apart <= 0.5 * tall and -1.5 * tall <= gap <= _GAP * tall


def _union(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float, float, float]:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _turned_point(x: float, y: float, turn: int) -> tuple[float, float]:
    return ((x, y), (-y, x), (-x, -y), (y, -x))[turn % 4]


def _turned(box: tuple[float, ...], turn: int) -> tuple[float, float, float, float]:
    """A box after quarter turns clockwise around (0, 0)."""
    x, y = _turned_point(box[0], box[1], turn)
    other_x, other_y = _turned_point(box[2], box[3], turn)
    return min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)


def _line(characters: Sequence[Character | str], around: tuple[float, ...], turn: int, width: int, height: int) -> Line:
    text = "".join(each if isinstance(each, str) else each.text for each in characters)
    x1, y1, x2, y2 = around
    corners = []
    for corner in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
        x, y = _turned_point(*corner, turn)
        corners.append((round(min(max(x, 0.0), width), 2), round(min(max(y, 0.0), height), 2)))
    quad: Quad = (corners[0], corners[1], corners[2], corners[3])
    return Line(" ".join(text.translate(_WRITTEN).split()), quad)
