"""Are the labels of OCR pages right? Engines of others read every line back, and its ink is measured.

Usage: python benchmarks/ocr_readback.py [--makers=clean,full,pdf,html] [--languages=en,zh] [--pages=20] [--fonts]
       [--engines=rapidocr,tesseract] [--stride=1] [--cache=data/cache]

`clean` are synthetic pages without noise, blur and shadow, `full` those of the default settings. Each quadrilateral is
warped to a rectangle and read by RapidOCR (PP-OCR, without detection) and tesseract (one line). A word is right if the
reading has its characters one after another; spaces and the style of quotation marks do not count. `either` counts what
at least one engine has read. A quadrilateral is off if one of its sides is more than 2 pixels from the ink: on
synthetic pages the pixels that change if the line is left out, on others the shapes of ink whose centre is inside,
without straight rules; lines that are printed over each other are not measured.
"""

from __future__ import annotations

import argparse
import collections
import difflib
import io
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from ocr_sources import html_screens, ingredients, pdf_pages
from PIL import Image

from data_pipelines.ocr.pdf import RenderedPage
from data_pipelines.ocr.synthetic import render_page
from data_pipelines.ocr.synthetic_settings import CLEAN, PageSettings
from data_pipelines.pair import Line, Quad
from tests.support.quads import quad_error

HEIGHT = 48  # pixels of a line that is read
OFF_PX = 2.0
FAINT = 48  # of 255; the soft edge of a rule
LONGER_PX = 3  # how much longer than a line of text a rule is that is no part of it
CHANGED = 70  # of 255; half of the contrast of black on white after smoothing
_STYLES = str.maketrans("‘’“”″–—−·•●", '\'\'"""---...')
Reader = Callable[[np.ndarray], str]


class Measured(NamedTuple):
    """A line to be read: text, crop (BGR), font, and how far its quadrilateral is off (None: not measured)."""

    text: str
    crop_HWC: np.ndarray
    font: str
    off_px: float | None


def rectified(image_HWC: np.ndarray, quad: Quad) -> np.ndarray:
    """The quadrilateral as an upright rectangle with a margin of a fifth of its height."""
    corners = np.asarray(quad, np.float32)
    width = max(np.hypot(*(corners[1] - corners[0])), np.hypot(*(corners[2] - corners[3])))
    height = max(np.hypot(*(corners[3] - corners[0])), np.hypot(*(corners[2] - corners[1])), 1)
    margin = HEIGHT / 5
    across = max(8, HEIGHT * width / height)
    target = np.asarray([(0, 0), (across, 0), (across, HEIGHT), (0, HEIGHT)], np.float32) + margin
    matrix = cv2.getPerspectiveTransform(corners, target)
    size = (int(across + 2 * margin), int(HEIGHT + 2 * margin))
    return cv2.warpPerspective(image_HWC, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def plain(text: str) -> str:
    """The text without spaces, in compatibility form, with one style of quotation marks and dashes."""
    return "".join(unicodedata.normalize("NFKC", text.translate(_STYLES)).split())


def right_characters(label: str, reading: str) -> list[bool]:
    """For each character of `plain(label)`, whether the reading has it at its position."""
    target = plain(label)
    right = [False] * len(target)
    for block in difflib.SequenceMatcher(None, target, plain(reading), autojunk=False).get_matching_blocks():
        right[block.a : block.a + block.size] = [True] * block.size
    return right


def units(label: str, right: Sequence[bool], language: str) -> list[bool]:
    """Which words (English) or characters (Chinese) of the label are right."""
    if language == "zh":
        return list(right)
    position = 0
    words = []
    for word in label.split():
        length = len(plain(word))
        words.append(all(right[position : position + length]))
        position += length
    return words


def rapidocr() -> Reader:
    import logging

    from rapidocr import RapidOCR

    logging.disable(logging.INFO)
    engine = RapidOCR()

    def read(crop_HWC: np.ndarray) -> str:
        result: Any = engine(crop_HWC, use_det=False, use_cls=False, use_rec=True)
        return "".join(result.txts or ())

    return read


def tesseract(language: str) -> Reader:
    model = {"en": "eng", "zh": "chi_sim"}[language]

    def read(crop_HWC: np.ndarray) -> str:
        payload = cv2.imencode(".png", crop_HWC)[1].tobytes()
        command = ["tesseract", "stdin", "stdout", "--psm", "7", "-l", model]
        return subprocess.run(command, input=payload, capture_output=True, check=True).stdout.decode()

    return read


def synthetic(language: str, cache: Path, count: int, stride: int, settings: PageSettings) -> Iterator[Measured]:
    """Every `stride`-th line of synthetic pages; on clean ones it is also measured by leaving it out."""
    made_of = ingredients(language, cache)
    for number in range(count):
        page = render_page(7, number, made_of, settings)
        image_HWC = np.asarray(Image.open(io.BytesIO(page.jpeg)).convert("RGB"))[..., ::-1]
        for index in range(number % stride, len(page.lines), stride):
            line = page.lines[index]
            off = None
            if settings is CLEAN:
                without = render_page(7, number, made_of, settings, without=index)
                other_HWC = np.asarray(Image.open(io.BytesIO(without.jpeg)).convert("RGB"))[..., ::-1]
                off = quad_error(line.quad, cv2.absdiff(image_HWC, other_HWC).max(axis=2) > CHANGED)
            yield Measured(line.text, rectified(image_HWC, line.quad), page.fonts[index], off)


def rendered(pages: Iterator[Any], stride: int) -> Iterator[Measured]:
    """Every `stride`-th line of PDF pages or HTML screens; measured unless another line is printed over it."""
    for number, page in enumerate(pages):
        if not isinstance(page, RenderedPage):
            continue
        image_HWC = np.asarray(Image.open(io.BytesIO(page.picture.encoded)).convert("RGB"))[..., ::-1]
        for line in page.lines[number % stride :: stride]:
            others = [other.quad for other in page.lines if other is not line]
            off = None if any(overlap(line.quad, other) for other in others) else off_ink(image_HWC, line)
            yield Measured(line.text, rectified(image_HWC, line.quad), "", off)


def overlap(quad: Quad, other: Quad) -> bool:
    """Whether two upright quadrilaterals share more than a pixel's breadth, such as cells whose text is too long."""
    shared = np.minimum(np.max(quad, axis=0), np.max(other, axis=0)) - np.maximum(
        np.min(quad, axis=0), np.min(other, axis=0)
    )
    return bool((shared > 1).all())


def off_ink(image_HWC: np.ndarray, line: Line) -> float | None:
    """How far the sides of an upright line are from the shapes of ink in it; None if something else touches them."""
    corners = np.asarray(line.quad)
    x1, y1 = corners.min(axis=0)
    x2, y2 = corners.max(axis=0)
    left, top = max(0, int(x1) - 8), max(0, int(y1) - 8)
    part = image_HWC[top : int(np.ceil(y2)) + 8, left : int(np.ceil(x2)) + 8].astype(int)
    background = np.median(part.reshape(-1, 3), axis=0)
    contrast_HW = np.abs(part - background).max(axis=2)
    ink_HW = ink_without_rules(contrast_HW, x2 - x1, y2 - y1)
    _, _, shapes, centers = cv2.connectedComponentsWithStats(ink_HW, connectivity=8)
    shapes = shapes[1:]
    corner = np.asarray((left, top))
    centers = centers[1:] + corner
    inside = ((centers >= (x1 - 1, y1 - 1)) & (centers <= (x2 + 1, y2 + 1))).all(axis=1)
    frames = (shapes[:, :2] + corner < (x1, y1)).all(axis=1)  # of cells of tables, which have their centre inside
    frames &= (shapes[:, :2] + shapes[:, 2:4] + corner > (x2, y2)).all(axis=1)
    inside &= ~frames
    shapes = shapes[inside]
    if not len(shapes):
        return None
    height, width = ink_HW.shape
    ends = shapes[:, :2] + shapes[:, 2:4]
    # A rule or a border that crosses the crop is no text.
    if (shapes[:, 0] == 0).any() or (shapes[:, 1] == 0).any() or (ends >= (width, height)).any():
        return None
    low = shapes[:, :2].min(axis=0) + corner
    high = ends.max(axis=0) + corner
    return float(max(np.abs(low - (x1, y1)).max(), np.abs(high - (x2, y2)).max()))


def ink_without_rules(contrast_HW: np.ndarray, width: float, height: float) -> np.ndarray:
    """The ink, [H, W] uint8, without straight rules that are longer than the line of text, such as frames of cells.

    Letters may touch such rules. An underline ends with its text and remains.

    Args:
      contrast_HW: difference to the background, of 255.
      width, height: of the line of text.
    """
    ink_HW = (contrast_HW > CHANGED).astype(np.uint8)
    faint_HW = (contrast_HW > FAINT).astype(np.uint8)
    for shape in ((1, int(width + LONGER_PX)), (int(height + LONGER_PX), 1)):
        ink_HW[cv2.morphologyEx(faint_HW, cv2.MORPH_OPEN, np.ones(shape, np.uint8)) == 1] = 0
    return ink_HW


class Tally:
    """Right and all words or characters, by engine."""

    def __init__(self) -> None:
        self.right: collections.Counter[str] = collections.Counter()
        self.all = 0

    def add(self, by_engine: dict[str, list[bool]]) -> None:
        self.all += len(next(iter(by_engine.values())))
        for engine, verdicts in by_engine.items():
            self.right[engine] += sum(verdicts)
        self.right["either"] += sum(map(any, zip(*by_engine.values(), strict=True)))

    def __str__(self) -> str:
        return "  ".join(f"{engine} {100 * right / max(self.all, 1):5.1f} %" for engine, right in self.right.items())


def lines_of(maker: str, language: str, cache: Path, count: int, stride: int) -> Iterator[Measured]:
    if maker in ("clean", "full"):
        return synthetic(language, cache, count, stride, CLEAN if maker == "clean" else PageSettings())
    return rendered({"pdf": pdf_pages, "html": html_screens}[maker](language, cache, count), stride)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--makers", default="clean,full,pdf,html")
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--stride", type=int, default=1, help="read every so many lines")
    parser.add_argument("--engines", default="rapidocr,tesseract")
    parser.add_argument("--fonts", action="store_true", help="a line per font")
    parser.add_argument("--cache", default="data/cache", type=Path)
    parser.add_argument("--wrong", type=int, default=0, help="show so many lines that no engine has read")
    options = parser.parse_args()
    if "tesseract" in options.engines and shutil.which("tesseract") is None:
        sys.exit("tesseract is not installed; apt-get install tesseract-ocr tesseract-ocr-chi-sim")
    for language in options.languages.split(","):
        engines = options.engines.split(",")
        readers = {name: rapidocr() if name == "rapidocr" else tesseract(language) for name in engines}
        for maker in options.makers.split(","):
            total = Tally()
            fonts: dict[str, Tally] = collections.defaultdict(Tally)
            offs = []
            shown = 0
            for line in lines_of(maker, language, options.cache, options.pages, options.stride):
                readings = {name: read(line.crop_HWC) for name, read in readers.items()}
                verdicts = {
                    name: units(line.text, right_characters(line.text, reading), language)
                    for name, reading in readings.items()
                }
                total.add(verdicts)
                fonts[line.font].add(verdicts)
                if line.off_px is not None:
                    offs.append(line.off_px)
                if shown < options.wrong and not all(map(any, zip(*verdicts.values(), strict=True))):
                    shown += 1
                    print(f"    {line.font} {line.text!r} read as {readings}")
            unit = "words" if language == "en" else "characters"
            off = sum(error > OFF_PX for error in offs)
            print(
                f"{maker:6} {language}  {total.all:6} {unit}: {total}  quads off by more than {OFF_PX:.0f} px: "
                f"{off} of {len(offs)}, largest {max(offs, default=0):.1f} px",
                flush=True,
            )
            if options.fonts and maker in ("clean", "full"):
                for font, tally in sorted(fonts.items()):
                    print(f"    {font:24} {tally.all:5} {unit}: {tally}")


if __name__ == "__main__":
    main()
