"""An engine of others reads lines of every maker back: the labels are right, small version of the benchmark."""

from __future__ import annotations

import importlib.util
import io
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from data_pipelines.ocr.html import BROWSERS, HtmlSettings, read_screens
from data_pipelines.ocr.pdf import PdfSettings, RenderedPage, read_pages
from data_pipelines.ocr.synthetic import Ingredients, render_page
from data_pipelines.ocr.synthetic_settings import CLEAN
from data_pipelines.pair import Line
from tests.support.corpora.rendered import write_html_pages, write_pdf_pages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed"),
]
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
Lines = Iterator[tuple[bytes, Line]]


@pytest.fixture(scope="module")
def readback() -> Iterator[ModuleType]:
    """The benchmark as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("ocr_readback", BENCHMARKS / "ocr_readback.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["ocr_readback"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def share_right(readback: ModuleType, lines: Lines) -> float:
    read = readback.tesseract("en")
    verdicts: list[bool] = []
    for payload, line in lines:
        image_HWC = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))[..., ::-1]
        reading = read(readback.rectified(image_HWC, line.quad))
        verdicts += readback.units(line.text, readback.right_characters(line.text, reading), "en")
    assert len(verdicts) > 20
    return sum(verdicts) / len(verdicts)


def lines_of(pages: Iterator[object]) -> Lines:
    for page in pages:
        if isinstance(page, RenderedPage):
            yield from ((page.picture.encoded, line) for line in page.lines)


def test_synthetic_pages(readback: ModuleType, english: Ingredients) -> None:
    pages = [render_page(11, number, english, CLEAN) for number in range(3)]
    lines = ((page.jpeg, line) for page in pages for line in page.lines if len(line.text) > 12)
    assert share_right(readback, itertools.islice(lines, 40)) >= 0.9


def test_pdf_pages(readback: ModuleType, tmp_path: Path) -> None:
    write_pdf_pages(tmp_path)
    assert share_right(readback, lines_of(read_pages(tmp_path / "2023/report.PDF", PdfSettings()))) >= 0.97


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed")
def test_html_screens(readback: ModuleType, tmp_path: Path) -> None:
    write_html_pages(tmp_path)
    screens = read_screens(tmp_path / "site/index.html", tmp_path, HtmlSettings())
    assert share_right(readback, lines_of(screens)) >= 0.97


def test_ink_is_measured_next_to_the_frame_of_a_cell(readback: ModuleType) -> None:
    """Ink that touches a frame is measured without the frame, and a wrong quadrilateral is still noticed."""
    image_HWC = np.full((60, 120, 3), 255, np.uint8)
    for row, column in ((16, slice(30, 90)), (slice(16, 40), 30), (slice(16, 40), 89), (39, slice(30, 90))):
        image_HWC[row, column] = 0  # the frame
    for x in range(31, 80, 10):
        image_HWC[17:33, x : x + 6] = 0  # letters that touch its left and its upper side
    right = ((31.0, 17.0), (77.0, 17.0), (77.0, 33.0), (31.0, 33.0))
    wrong = ((31.0, 17.0), (73.0, 17.0), (73.0, 33.0), (31.0, 33.0))
    assert readback.off_ink(image_HWC, Line("|||||", right)) <= 1
    assert readback.off_ink(image_HWC, Line("|||||", wrong)) == 4
    assert readback.overlap(right, wrong) and not readback.overlap(right, tuple((x, y + 16) for x, y in right))


def test_a_wrong_label_is_noticed(readback: ModuleType) -> None:
    right = readback.right_characters("The ferry leaves", "The ferry leaves")
    assert readback.units("The ferry leaves", right, "en") == [True, True, True]
    wrong = readback.right_characters("The berry leaves", "The ferry leaves")
    assert readback.units("The berry leaves", wrong, "en") == [True, False, True]
    assert readback.units("渡轮。", readback.right_characters("渡轮。", "渡船。"), "zh") == [True, False, True]
