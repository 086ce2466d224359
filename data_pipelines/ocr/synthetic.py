"""Synthetic pages in the style of SynthDoG (paper, A.4): text in columns on paper, in perspective, before a photograph.

    ingredients = Ingredients("en", page_fonts("en", cache), Texts(texts), Photographs.of_debian(cache))
    page = render_page(seed=0, number=17, ingredients=ingredients, settings=PageSettings())
    page.jpeg, page.width, page.height
    [(line.text, line.quad) for line in page.lines]

A page depends on nothing but its arguments, so that any worker may make any page, and make it again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import ImageFont

from data_pipelines.ocr import synthetic_effects, warps
from data_pipelines.ocr.fonts import Font
from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic_layout import Area, Row, stack
from data_pipelines.ocr.synthetic_settings import PageSettings
from data_pipelines.ocr.synthetic_text import TextSource, drawable, take_row
from data_pipelines.pair import Line

# The least coverage, of 255, of a pixel that counts as ink.
INK = 64
_SMALLEST_PX = 6  # font size; smaller text is not written
_SKIPPED_WORDS = 8  # that do not fit into a narrow column, before its row stays empty


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """The language, fonts, texts and photographs from which pages are made.

    Attributes:
      language: "en" or "zh": whether rows break between words only.
      fonts: one is drawn for each block of text.
      texts: see `synthetic_text`.
      photographs: behind the documents.
    """

    language: str
    fonts: Sequence[Font]
    texts: TextSource
    photographs: Photographs


@dataclasses.dataclass(frozen=True)
class Page:
    """A page: its JPEG, its size in pixels, and its lines in reading order, each with the name of its font."""

    jpeg: bytes
    width: int
    height: int
    lines: tuple[Line, ...]
    fonts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Written:
    """A line on the flat document: its text, its font, and the rectangle of its ink (right and bottom exclusive)."""

    text: str
    font: str
    box: tuple[int, int, int, int]


def render_page(
    seed: int, number: int, ingredients: Ingredients, settings: PageSettings, without: int | None = None
) -> Page:
    """One page.

    Args:
      seed, number: together determine all random choices.
      ingredients: language, fonts, texts, photographs.
      settings: how pages look.
      without: the number of a line that is left out of the picture and of the page's lines; nothing else changes.

    Raises:
      UserError, OSError: if a text or a photograph cannot be read.
    """
    cv2.setNumThreads(1)  # pages are made by many processes, one per core
    layout_rng, look_rng = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, number]).spawn(2))
    width, height = _size(layout_rng, settings.landscape, settings.short_size, settings.aspect_ratio)
    document_size = _document_size(layout_rng, width, height, settings)
    gray_HW = synthetic_effects.paper(look_rng, document_size[1], document_size[0], settings)
    written = _write(layout_rng, gray_HW, ingredients, settings, without)

    elastic = warps.Elastic(look_rng, document_size[1], document_size[0], settings)
    gray_HW = synthetic_effects.noisy(look_rng, elastic.picture(gray_HW), settings)
    corners = warps.perspective(look_rng, *document_size, settings)
    free = np.maximum((width, height) - np.ceil(corners.max(axis=0)), 0)
    corners = corners + look_rng.integers(0, free.astype(int) + 1)
    matrix = warps.homography(*document_size, corners)

    blur = look_rng.uniform(*settings.background_blur)
    image_HWC = ingredients.photographs.backdrop(look_rng, width, height, blur)
    image_HWC = _on_photograph(image_HWC, gray_HW, matrix)
    image_HWC = synthetic_effects.camera(look_rng, image_HWC, settings)
    quality = int(look_rng.integers(int(settings.quality[0]), int(settings.quality[1]) + 1))
    encoded = cv2.imencode(".jpg", image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    lines = tuple(Line(each.text, _quad(elastic.box(each.box), matrix, width, height)) for each in written)
    return Page(encoded.tobytes(), width, height, lines, tuple(each.font for each in written))


def _size(
    rng: np.random.Generator, landscape: float, short_size: tuple[float, float], aspect_ratio: tuple[float, float]
) -> tuple[int, int]:
    """Width and height in pixels."""
    lies = rng.random() < landscape
    shorter = int(rng.integers(int(short_size[0]), int(short_size[1]) + 1))
    longer = int(shorter * rng.uniform(*aspect_ratio))
    return (longer, shorter) if lies else (shorter, longer)


def _document_size(rng: np.random.Generator, width: int, height: int, settings: PageSettings) -> tuple[int, int]:
    """Width and height of the document: those of the picture, or smaller."""
    if rng.random() < settings.fullscreen:
        return width, height
    most = min(width, height)
    shorter = tuple(min(most, side) for side in settings.document_short_size)
    lies = rng.random() < settings.document_landscape
    short_side = int(rng.integers(int(shorter[0]), int(shorter[1]) + 1))
    room = (width if lies else height) / short_side
    ratios = [min(room, ratio) for ratio in settings.document_aspect_ratio]
    long_side = int(short_side * rng.uniform(ratios[0], ratios[1]))
    return (long_side, short_side) if lies else (short_side, long_side)


def _write(
    rng: np.random.Generator,
    gray_HW: np.ndarray,
    ingredients: Ingredients,
    settings: PageSettings,
    without: int | None,
) -> list[_Written]:
    """Writes rows of text on the document `gray_HW`, which is changed, and returns them without line `without`."""
    height, width = gray_HW.shape
    margin_x = width * rng.uniform(*settings.margin)
    margin_y = height * rng.uniform(*settings.margin)
    area = Area(margin_x, margin_y, width - 2 * margin_x, height - 2 * margin_y)
    passage = ingredients.texts.passage(rng)
    common = int(rng.uniform(*settings.gray)) if rng.random() < settings.gray_text else None
    written: list[_Written] = []
    count = 0
    position = 0
    for block in stack(rng, area, settings):
        font = ingredients.fonts[int(rng.integers(len(ingredients.fonts)))]
        text = drawable(passage, font, ingredients.language)
        size = int(block[0].height / _line_height(font.path, font.index))
        if not text or size < _SMALLEST_PX:
            continue
        face = _face(font.path, font.index, size)
        lengths = size * _lengths(font, text)
        for row in block:
            share = rng.uniform(*settings.textbox_fill)
            level = int(rng.uniform(*settings.gray)) if rng.random() < settings.gray_text else 0
            row_width = min(max(row.width * share, row.height), row.width)
            position = position if position < len(text) else 0
            row_text, position = _next_row(text, position, row_width, lengths, face)
            drawn = _drawn(row_text, row, face, gray_HW.shape) if row_text else None
            if drawn is None:
                continue
            if count != without:
                box, coverage_HW = drawn
                written.append(_Written(row_text, font.name, _blend(gray_HW, box, coverage_HW, common or level)))
            count += 1
    return written


def _next_row(
    text: str, position: int, width: float, lengths: np.ndarray, face: ImageFont.FreeTypeFont
) -> tuple[str, int]:
    """The next stretch of the text that fits, passing over a few words that do not, and the position after it."""
    room = width
    for _ in range(_SKIPPED_WORDS):
        row_text, end = take_row(text, position, room, lengths)
        drawn_length = face.getlength(row_text)
        if drawn_length > width:  # small letters are drawn on whole pixels, which may make them wider
            room = min(room, width * room / drawn_length) - 1
            continue
        position = end
        if row_text:
            break
    return ("" if drawn_length > width else row_text), position


def _drawn(
    text: str, row: Row, face: ImageFont.FreeTypeFont, shape: tuple[int, ...]
) -> tuple[tuple[int, int, int, int], np.ndarray] | None:
    """The rectangle of the row's ink on the document, and its coverage, [h, w] uint8; None if nothing is drawn."""
    ascent, descent = face.getmetrics()
    length = face.getlength(text)
    free = row.width - length
    x = row.x + {"left": 0.0, "right": free, "center": free / 2}[row.align]
    baseline = row.y + (row.height - ascent - descent) / 2 + ascent
    mask, (offset_x, offset_y) = face.getmask2(text, mode="L", anchor="ls")
    coverage_HW = np.asarray(mask, np.uint8).reshape(mask.size[1], mask.size[0])
    left = round(x) + offset_x
    top = round(baseline) + offset_y
    coverage_HW = coverage_HW[max(0, -top) : shape[0] - top, max(0, -left) : shape[1] - left]
    left, top = max(0, left), max(0, top)
    inked = coverage_HW >= INK
    columns = np.flatnonzero(inked.any(axis=0))
    rows = np.flatnonzero(inked.any(axis=1))
    if not len(columns):
        return None
    x1, x2 = int(columns[0]), int(columns[-1]) + 1
    y1, y2 = int(rows[0]), int(rows[-1]) + 1
    return (left + x1, top + y1, left + x2, top + y2), coverage_HW[y1:y2, x1:x2]


def _blend(
    gray_HW: np.ndarray, box: tuple[int, int, int, int], coverage_HW: np.ndarray, level: int
) -> tuple[int, int, int, int]:
    """Draws ink of grey `level`; returns the box."""
    x1, y1, x2, y2 = box
    part = gray_HW[y1:y2, x1:x2]
    weight = coverage_HW.astype(np.uint16)
    part[...] = (part * (255 - weight) + level * weight + 127) // 255
    return box


def _on_photograph(image_HWC: np.ndarray, gray_HW: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8: the document in perspective over the photograph."""
    height, width = image_HWC.shape[:2]
    page_HW = warps.warped(gray_HW, matrix, width, height)  # fades to 0 at the edge, as its mask does
    mask_HW = warps.warped(np.full_like(gray_HW, 255), matrix, width, height)
    behind = cv2.multiply(image_HWC, cv2.merge([255 - mask_HW] * 3), scale=1 / 255)
    return cv2.add(behind, cv2.merge([page_HW] * 3))


def _quad(box: tuple[float, float, float, float], matrix: np.ndarray, width: int, height: int) -> tuple:
    """The corners of a rectangle of the document in the picture, clockwise from the top left of the text."""
    x1, y1, x2, y2 = box
    corners = warps.moved(np.asarray([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]), matrix)
    corners = np.clip(corners, 0, (width, height)).round(2)
    return tuple((float(x), float(y)) for x, y in corners)


@functools.lru_cache(maxsize=1024)
def _face(path: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    """The face at `size` pixels. Basic layout needs no library that might be another one elsewhere."""
    if path:
        return ImageFont.truetype(path, size, index, layout_engine=ImageFont.Layout.BASIC)
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


@functools.cache
def _line_height(path: str, index: int) -> float:
    """Ascent and descent of the face together, relative to its size."""
    return sum(_face(path, index, 200).getmetrics()) / 200


def _lengths(font: Font, text: str) -> np.ndarray:
    """[characters + 1] the length of the text up to each position, relative to the font's size, without kerning."""
    advances = _advances(font.path, font.index)
    face = _face(font.path, font.index, 200)
    for character in set(text):
        if character not in advances:
            advances[character] = face.getlength(character) / 200
    return np.concatenate([[0.0], np.cumsum([advances[character] for character in text])])


@functools.cache
def _advances(path: str, index: int) -> dict[str, float]:
    """The advances of a face that have been measured so far, relative to its size."""
    return {}
