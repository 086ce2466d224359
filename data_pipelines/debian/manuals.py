"""Pages from the installation guide of Debian in English and Chinese: its PDF and HTML files, and their text.

The package `installation-guide-amd64` has the same guide as one PDF and as about 130 HTML files per language. Some of
them, evenly spread, become the corpora `pdf_pages` and `html_pages`; all paragraphs become the corpus `text`, from
which also the lines of `synthetic_pages` are taken.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pypdfium2
from selectolax.lexbor import LexborHTMLParser

from data_pipelines.corpora.documents import LICENSE
from data_pipelines.corpora.synthetic_pages import Order, write_orders
from data_pipelines.fetch.apt import SourceUnavailable, fetch_package
from data_pipelines.fetch.wallpapers import wallpapers
from data_pipelines.ocr.font_families import FAMILIES
from data_pipelines.ocr.fonts import PAGE_FONTS

PACKAGE = "installation-guide-amd64"
GUIDE_LICENSE = "GPL-2.0-only"
PHOTOGRAPHS_LICENSE = "CC-BY-4.0"
LANGUAGES = {"en": "en", "zh": "zh_CN"}  # ours -> the package's
FONTS = {"en": ("fonts-croscore", "fonts-dejavu-core"), "zh": ("fonts-wqy-microhei",)}
PAGES_PER_ORDER = 8

T = TypeVar("T")


def spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, evenly spread."""
    count = min(count, len(values))
    return [values[(2 * number + 1) * len(values) // (2 * count)] for number in range(count)]


def write_pdf_pages(cache: Path, folder: Path, pages: int) -> None:
    """Writes one PDF per language, with some of the guide's pages.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    for language, name in LANGUAGES.items():
        packed = guide_of(cache) / name / f"install.{name}.pdf.gz"
        target = folder / language / "guide.pdf"
        target.parent.mkdir(parents=True)
        whole = pypdfium2.PdfDocument(gzip.decompress(packed.read_bytes()))
        part = pypdfium2.PdfDocument.new()
        part.import_pages(whole, pages=spread(range(len(whole)), pages))
        part.save(target)
        part.close()
        whole.close()
    (folder / LICENSE).write_text(f"{GUIDE_LICENSE}\n")


def write_html_pages(cache: Path, folder: Path, pages: int) -> None:
    """Copies some of the guide's HTML files per language, with all files that they show.

    The cache also gets a Chinese font, which Chromium uses if none is installed.

    Raises:
      SourceUnavailable: if a package is not available on this machine.
    """
    fonts_of("zh", cache)
    for language, name in LANGUAGES.items():
        source = guide_of(cache) / name
        chosen = {file.name for file in spread(sorted(source.glob("*.html")), pages)}
        for file in sorted(source.rglob("*")):
            if file.name in chosen or file.suffix in (".css", ".png"):
                target = folder / language / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    (folder / LICENSE).write_text(f"{GUIDE_LICENSE}\n")


def write_text(cache: Path, folder: Path) -> None:
    """Writes the paragraphs of every HTML file of the guide as one text, a JSONL file per language.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for language, name in LANGUAGES.items():
        lines = []
        for file in sorted((guide_of(cache) / name).glob("*.html")):
            text = paragraphs_of(file.read_text(encoding="utf-8", errors="replace"))
            if text:
                row = {"id": f"{language}/{file.stem}", "text": text, "language": language, "license": GUIDE_LICENSE}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / f"{language}.jsonl").write_text("".join(lines), encoding="utf-8")


def paragraphs_of(html: str) -> str:
    """The text of the paragraphs of an HTML file, one per line."""
    nodes = LexborHTMLParser(html).css("p")
    texts = (" ".join(node.text().split()) for node in nodes)
    return "\n".join(text for text in texts if text)


def write_synthetic_pages(cache: Path, folder: Path, pages: int) -> None:
    """Writes orders of synthetic pages with the guide's text, some fonts, and Debian's photographs.

    Args:
      cache: an absolute path, because the orders name it.
      folder: to write into.
      pages: per language.

    Raises:
      SourceUnavailable: if a package is not available on this machine.
    """
    wallpapers(cache)
    write_text(cache, folder / "texts")
    for seed, language in enumerate(LANGUAGES):
        order = Order(
            language=language,
            pages=pages,
            seed=seed,
            texts=f"texts/{language}.jsonl",
            fonts=tuple(str(path) for path in fonts_of(language, cache)),
            cache=str(cache),
            license=f"{GUIDE_LICENSE} (text); {PHOTOGRAPHS_LICENSE} or CC0-1.0 (photographs)",
        )
        write_orders(folder, order, PAGES_PER_ORDER)


def guide_of(cache: Path) -> Path:
    """The folder of the unpacked package that has one folder per language."""
    root = f"usr/share/doc/{PACKAGE}"
    patterns = [f"{root}/{name}/*" for name in LANGUAGES.values()]
    return fetch_package(PACKAGE, cache, (*patterns, f"{root}/copyright")) / root


def fonts_of(language: str, cache: Path) -> list[Path]:
    """The files of the table's families that are in the packages of `FONTS`.

    Raises:
      SourceUnavailable: if a package is not available on this machine.
    """
    files = []
    for package in FONTS[language]:
        names = [f"usr/share/fonts/{family.file}" for family in FAMILIES[language] if family.package == package]
        fetched = fetch_package(package, cache / PAGE_FONTS, (*names, "usr/share/doc/*/copyright"))
        files += [fetched / name for name in names if (fetched / name).is_file()]
    if not files:
        raise SourceUnavailable(f"the packages {', '.join(FONTS[language])} have none of the expected fonts")
    return files
