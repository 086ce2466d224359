"""Pictures of one or two words on a crop of a photograph, with the exact quad of each word.

english, chinese = vocabularies(raws, [(s.noun_en, s.noun_zh) for s in stamps], fonts_en, fonts_zh)
lexicons = {"en": Lexicon(tuple(english), tuple(fonts_en)), "zh": Lexicon(tuple(chinese), tuple(fonts_zh))}
picture = render_words(np.random.default_rng(0), "en", lexicons["en"], views, OcrSettings())
picture.image_HWC                               # [100, 100, 3] uint8
[(line.text, line.quad) for line in picture.lines]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.ocr.fonts import Font
from data_pipelines.quickstart.scenes import on_grid, random_crop
from data_pipelines.quickstart.stamps import tight_box
from qwenvl_jax.runtime.errors import UserError

# A pixel counts as drawn from this coverage (of 255) on.
DRAWN_COVERAGE = 64
_LIGHT = ((255, 255, 255), (255, 240, 120), (150, 255, 255), (190, 255, 160), (255, 205, 215))
_DARK = ((0, 0, 0), (110, 0, 10), (0, 20, 110), (0, 70, 20), (70, 0, 90))


@dataclasses.dataclass(frozen=True)
class OcrSettings:
    """How text looks, in pixels of the picture. A word that does not fit is drawn smaller."""

    picture_px: int = 100
    min_english_px: int = 34  # font size
    max_english_px: int = 44
    min_chinese_px: int = 36
    max_chinese_px: int = 46
    max_words: int = 2
    background_contrast: float = 0.45  # of the photograph behind the text
    background_push: float = 0.45  # of the way from its mean colour to white or black, away from the text's colour
    margin_px: int = 1
    grid_px: int = 1  # the corners of words are multiples of it

    def check(self) -> OcrSettings:
        """Returns itself; raises UserError if no text would fit."""
        if not (
            12 <= self.min_english_px <= self.max_english_px < self.picture_px // 2
            and 12 <= self.min_chinese_px <= self.max_chinese_px < self.picture_px // 2
        ):
            raise UserError(
                "OCR font sizes must be between 12 px and half of picture_px, the minimum not above the maximum"
            )
        if self.max_words not in (1, 2) or not (0 <= self.background_contrast <= 1 and 0 <= self.background_push <= 1):
            raise UserError("OCR settings need max_words 1 or 2, background_contrast and background_push in [0, 1]")
        if not 1 <= self.grid_px <= self.picture_px // 10:
            raise UserError("ocr.grid_px must be between 1 and a tenth of picture_px")
        return self


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words of a language and the fonts, each of which can draw every word."""

    words: tuple[str, ...]
    fonts: tuple[Font, ...]


@dataclasses.dataclass(frozen=True)
class Line:
    """A drawn word and the corners of its pixels, clockwise from the top left; right and bottom exclusive."""

    text: str
    quad: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class OcrPicture:
    """[S, S, 3] uint8, its lines from top to bottom, and their language."""

    image_HWC: np.ndarray
    lines: tuple[Line, ...]
    language: str


def render_words(
    rng: np.random.Generator, language: str, lexicon: Lexicon, backgrounds: Sequence[np.ndarray], settings: OcrSettings
) -> OcrPicture:
    """Draws one or two different words of `lexicon` one above the other, at random positions.

    Args:
      rng: consumed; equal states give equal pictures.
      language: "en" or "zh"; sets the range of font sizes.
      lexicon: words and fonts of that language.
      backgrounds: [h, w, 3] uint8, both sides at least `settings.picture_px`.
      settings: sizes and contrast.
    """
    side = settings.picture_px
    margin = settings.margin_px
    grid = settings.grid_px
    image, colors = _backdrop(rng, backgrounds, settings)
    count = int(rng.integers(1, min(settings.max_words, len(lexicon.words)) + 1))
    words = [lexicon.words[i] for i in rng.choice(len(lexicon.words), size=count, replace=False)]
    low, high = (
        (settings.min_english_px, settings.max_english_px)
        if language == "en"
        else (settings.min_chinese_px, settings.max_chinese_px)
    )
    lines = []
    band = (side - 2 * margin) // count
    for row, word in enumerate(words):
        font = lexicon.fonts[rng.integers(len(lexicon.fonts))]
        size = int(rng.integers(low, high + 1))
        top = margin + row * band
        max_width = _span(margin, side - margin, grid)
        max_height = _span(top, top + band, grid)
        coverage = _stretch(_draw(word, font, size, max_width, max_height), grid)
        h, w = coverage.shape
        x = on_grid(rng, margin, side - margin - w, grid)
        y = on_grid(rng, top, top + band - h, grid)
        color = np.asarray(colors[rng.integers(len(colors))], np.uint16)
        part = image[y : y + h, x : x + w]
        weight = coverage[..., None].astype(np.uint16)
        part[...] = (part * (255 - weight) + color * weight + 127) // 255
        lines.append(Line(word, ((x, y), (x + w, y), (x + w, y + h), (x, y + h))))
    return OcrPicture(image, tuple(lines), language)


def _backdrop(
    rng: np.random.Generator, backgrounds: Sequence[np.ndarray], settings: OcrSettings
) -> tuple[np.ndarray, tuple[tuple[int, int, int], ...]]:
    """A pale crop, [S, S, 3] uint8, pushed towards white or black, and the text colours that contrast with it."""
    image = random_crop(rng, backgrounds, settings.picture_px)
    mean = image.mean(axis=(0, 1))
    bright = float(mean @ (0.299, 0.587, 0.114)) > 127
    colors, target = (_DARK, 255.0) if bright else (_LIGHT, 0.0)
    pushed_mean = mean + (target - mean) * settings.background_push
    pale = pushed_mean + (image - mean) * settings.background_contrast
    return pale.clip(0, 255).astype(np.uint8), colors


def _span(low: int, high: int, grid: int) -> int:
    """The distance between the first and the last multiple of `grid` in [low, high]."""
    return high // grid * grid + low // -grid * grid


def _stretch(coverage_HW: np.ndarray, grid: int) -> np.ndarray:
    """The coverage, resized so that both sides are the nearest multiple of `grid`."""
    height, width = (grid * max(1, round(side / grid)) for side in coverage_HW.shape)
    if (height, width) == coverage_HW.shape:
        return coverage_HW
    return np.asarray(Image.fromarray(coverage_HW).resize((width, height), Image.Resampling.BICUBIC))


@functools.lru_cache(maxsize=10_000)  # drawing is the longest part of a picture, and words and sizes are few
def _draw(word: str, font: Font, size: int, max_width: int, max_height: int) -> np.ndarray:
    """[h, w] uint8 coverage of the word, trimmed to its drawn pixels; `size` shrinks until it fits."""
    while True:
        face = font.at(size)
        x1, y1, x2, y2 = (int(v) for v in face.getbbox(word))
        canvas = Image.new("L", (x2 - x1 + 4, y2 - y1 + 4))
        ImageDraw.Draw(canvas).text((2 - x1, 2 - y1), word, fill=255, font=face)
        coverage = np.asarray(canvas)
        box = tight_box(coverage >= DRAWN_COVERAGE)
        if box is None:
            raise UserError(f"font {font.name} draws nothing for {word!r}; remove that font")
        coverage = coverage[box[1] : box[3], box[0] : box[2]]
        if coverage.shape[0] <= max_height and coverage.shape[1] <= max_width:
            return coverage
        size -= 1
