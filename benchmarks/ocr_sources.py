"""Texts, PDF and HTML files in English and Chinese for the benchmarks of OCR pages: Debian's reference manual."""

from __future__ import annotations

import functools
import gzip
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pypdfium2

from data_pipelines.fetch.apt import fetch_package
from data_pipelines.ocr.fonts import PAGE_FONTS, page_fonts
from data_pipelines.ocr.html import HtmlSettings, read_screens
from data_pipelines.ocr.pdf import PdfSettings, RenderedPage, read_pages
from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic import Ingredients
from data_pipelines.ocr.synthetic_text import Texts
from data_pipelines.pair import FailedRow

PACKAGES = {"en": ("debian-reference-en", "en"), "zh": ("debian-reference-zh-cn", "zh-cn")}


def manual(language: str, cache: Path) -> Path:
    """The folder of the manual's HTML files, which also has it as PDF and as text."""
    package, _ = PACKAGES[language]
    return fetch_package(package, cache, ("usr/share/debian-reference/*",)) / "usr/share/debian-reference"


@functools.cache
def texts(language: str, cache: Path) -> Texts:
    """The prose of the manual: paragraphs without commands, tables and file names."""
    suffix = PACKAGES[language][1]
    text = gzip.decompress((manual(language, cache) / f"debian-reference.{suffix}.txt.gz").read_bytes()).decode()
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    prose = [part for part in paragraphs if len(part) > 60 and not re.search(r"[|#$_~\\@{}<>=]|--|\.\.\.|/\w", part)]
    return Texts(prose)


def ingredients(language: str, cache: Path) -> Ingredients:
    """Everything that a synthetic page needs."""
    return Ingredients(language, page_fonts(language, cache), texts(language, cache), Photographs.of_debian(cache))


def pdf_pages(language: str, cache: Path, count: int) -> Iterator[RenderedPage | FailedRow]:
    """So many pages of the manual's PDF, at equal distances: the first 25 are title and tables of contents."""
    file = manual(language, cache) / f"debian-reference.{PACKAGES[language][1]}.pdf"
    with tempfile.TemporaryDirectory() as folder, pypdfium2.PdfDocument(file) as document:
        numbers = [int((index + 0.5) * len(document) / count) for index in range(min(count, len(document)))]
        sample = pypdfium2.PdfDocument.new()
        sample.import_pages(document, numbers)
        sample.save(Path(folder) / "sample.pdf")
        sample.close()
        yield from read_pages(Path(folder) / "sample.pdf", PdfSettings())


def html_screens(language: str, cache: Path, count: int) -> Iterator[RenderedPage | FailedRow]:
    """Screens of the manual's chapters."""
    folder = manual(language, cache)
    settings = HtmlSettings(cache=str(cache / PAGE_FONTS), most_screens=4)
    made = 0
    for file in sorted(folder.glob(f"ch*.{PACKAGES[language][1]}.html")):
        for screen in read_screens(file, folder, settings):
            yield screen
            made += 1
            if made == count:
                return
