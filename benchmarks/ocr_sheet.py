"""The picture of docs/ocr.md: pages of every maker with the quadrilaterals of their lines.

Usage: python benchmarks/ocr_sheet.py docs/ocr.png [--cache=data/cache]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import ocr_sources
from PIL import Image

from data_pipelines.ocr.pdf import RenderedPage
from data_pipelines.ocr.synthetic import render_page
from data_pipelines.ocr.synthetic_settings import PageSettings
from data_pipelines.pair import Line
from qwenvl_jax.html.figures import Region, draw, palette_color

CELL = (330, 400)
COLUMNS = 6


def marked(payload: bytes, lines: Sequence[Line]) -> Image.Image:
    image = Image.open(io.BytesIO(payload)).convert("RGB")
    picture = draw(image, [Region(line.quad, palette_color(index)) for index, line in enumerate(lines)], width=3)
    picture.thumbnail((CELL[0] - 6, CELL[1] - 6), Image.Resampling.LANCZOS)
    return picture


def rendered(pages: Iterator[object], first: int) -> Iterator[Image.Image]:
    whole = (page for page in pages if isinstance(page, RenderedPage) and len(page.lines) > 15)
    return (marked(page.picture.encoded, page.lines) for page in islice(whole, first, first + 3))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    options = parser.parse_args()
    pictures: list[Image.Image] = []
    for language in ("en", "zh"):
        made_of = ocr_sources.ingredients(language, options.cache)
        pages = (render_page(1, number, made_of, PageSettings()) for number in range(1, COLUMNS + 1))
        pictures += [marked(page.jpeg, page.lines) for page in pages]
    for language in ("en", "zh"):
        pictures += rendered(ocr_sources.pdf_pages(language, options.cache, 20), 2)
        pictures += rendered(ocr_sources.html_screens(language, options.cache, 5), 1)
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (CELL[0] * COLUMNS, CELL[1] * rows), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * CELL[0] + 3, number // COLUMNS * CELL[1] + 3))
    sheet.quantize(192).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
