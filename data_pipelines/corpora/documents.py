"""Folders of documents as corpora: the rows of a PDF or HTML file are its pages, rendered when they are read.

    folder/**/*.pdf            any names, at any depth
    folder/**/*.html, *.htm    with the pictures, styles and fonts that the pages name, below the same folder

Source: documents of Common Crawl (https://commoncrawl.org), or any others. Licence: that of the owners,
which documents do not state; a file FOLDER/LICENSE with one line states it for all documents. docs/ocr.md says which
text is taught.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.ocr import html, pdf
from data_pipelines.ocr.html import HtmlSettings
from data_pipelines.ocr.pdf import PdfSettings, RenderedPage
from data_pipelines.pair import FailedRow, RawPair, Row
from qwenvl_jax.data.languages import guess_language
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError, one_line

LICENSE = "LICENSE"

# (file, folder) -> the pages of the file.
ReadPages = Callable[[epath.Path, epath.Path], Iterator[RenderedPage | FailedRow]]


def pdf_layout(settings: PdfSettings | None = None) -> Layout:
    """The layout of a folder of PDF files."""
    read = functools.partial(_read_pdf, settings or PdfSettings())
    return Layout(functools.partial(_files, (".pdf",)), functools.partial(_rows, read))


def html_layout(settings: HtmlSettings | None = None) -> Layout:
    """The layout of a folder of HTML files."""
    read = functools.partial(_html_rows, settings or HtmlSettings())
    return Layout(functools.partial(_files, (".html", ".htm")), read, uses_cache=True)


def _html_rows(
    settings: HtmlSettings, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path, cache: str = ""
) -> Iterator[Row]:
    settings = dataclasses.replace(settings, cache=cache or settings.cache)
    return _rows(functools.partial(_read_html, settings), corpus, folder, split, file)


def _read_html(settings: HtmlSettings, file: epath.Path, folder: epath.Path) -> Iterator[RenderedPage | FailedRow]:
    return html.read_screens(file, folder, settings)


def _read_pdf(settings: PdfSettings, file: epath.Path, folder: epath.Path) -> Iterator[RenderedPage | FailedRow]:
    del folder
    return pdf.read_pages(file, settings)


def _files(suffixes: tuple[str, ...], folder: epath.Path, split: str) -> list[epath.Path]:
    del split
    listed = storage.files_below(folder) if storage.is_folder(folder) else []
    names = sorted(name for name in listed if name.lower().endswith(suffixes))
    if not names:
        raise UserError(f"{folder} has no {' or '.join(suffixes)} file; name a folder of such documents")
    return [folder / name for name in names]


def _rows(read: ReadPages, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    del split
    name = str(file.relative_to(folder))
    license_ = _license(folder) or corpus.license
    try:
        for page in read(file, folder):
            if isinstance(page, FailedRow):
                yield page
                continue
            yield RawPair(
                id=f"{name}#{page.number + 1}",
                source=corpus.name,
                license=license_,
                language=guess_language(" ".join(line.text for line in page.lines)),
                pictures=(page.picture,),
                lines=page.lines,
            )
    except OSError as error:
        yield FailedRow("document unreadable", one_line(error))


def _license(folder: epath.Path) -> str:
    """The first line of the file LICENSE; "" if there is none."""
    if not storage.exists(folder / LICENSE):
        return ""
    text = storage.read_bytes(folder / LICENSE, 0, 1000).decode("utf-8", "replace")
    return text.strip().partition("\n")[0].strip()
