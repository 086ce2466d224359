"""PDF pages: quads on the ink, rotation and crop boxes, bad files as failed rows."""

from __future__ import annotations

import io
import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from data_pipelines.beam import _descendants
from data_pipelines.ocr.pdf import Character, PdfSettings, RenderedPage, lines_of, read_pages
from data_pipelines.ocr.worker import Worker, WorkerFailed
from data_pipelines.pair import FailedRow
from tests.support.corpora.documents import Text, write_pdf
from tests.support.quads import quad_error

SETTINGS = PdfSettings()
TEXTS = (Text("First line of text", 72, 700), Text("and a second, smaller", 72, 660, size=9))


def rows(path: Path, settings: PdfSettings = SETTINGS) -> list[RenderedPage | FailedRow]:
    return list(read_pages(path, settings))


def pages(path: Path) -> list[RenderedPage]:
    return [row for row in rows(path) if isinstance(row, RenderedPage)]


def gray(page: RenderedPage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.picture.encoded)).convert("L")).astype(int)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, (40, 600, 400, 760)])
def test_quads_are_where_the_ink_is(tmp_path: Path, rotation: int, crop: tuple[int, int, int, int] | None) -> None:
    """The pixels that differ from the page without a line are the line's."""
    whole = tmp_path / "whole.pdf"
    write_pdf(whole, [TEXTS], rotation=rotation, crop=crop)
    (page,) = pages(whole)
    assert [line.text for line in page.lines] == [text.text for text in TEXTS]
    size = (page.picture.width, page.picture.height)
    expected = (crop[2] - crop[0], crop[3] - crop[1]) if crop else (612, 792)
    assert size == tuple(2 * side for side in (expected if rotation % 180 == 0 else expected[::-1]))
    for index, line in enumerate(page.lines):
        write_pdf(tmp_path / "part.pdf", [TEXTS[:index] + TEXTS[index + 1 :]], rotation=rotation, crop=crop)
        changed = np.abs(gray(page) - gray(pages(tmp_path / "part.pdf")[0])) > 60
        assert quad_error(line.quad, changed) <= 2
        reading = np.subtract(line.quad[1], line.quad[0])
        direction = np.round(reading / np.abs(reading).max())
        assert direction.tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1]][rotation // 90]


def test_text_that_cannot_be_seen_is_not_taught(tmp_path: Path) -> None:
    hidden = (
        Text("white on white", 72, 600, gray=1),
        Text("the text of a scan", 72, 560, mode=3),
        Text("outside of the page", 72, 900),
        Text("cut off at the right side of the page", 500, 500),
    )
    write_pdf(tmp_path / "a.pdf", [TEXTS + hidden])
    (page,) = pages(tmp_path / "a.pdf")
    texts = [line.text for line in page.lines]
    assert texts[:2] == [text.text for text in TEXTS]
    assert len(texts) == 3 and hidden[-1].text.startswith(texts[2])


def test_columns_and_directions_are_lines_of_their_own(tmp_path: Path) -> None:
    texts = (Text("left column", 72, 700), Text("right column", 350, 700), Text("upwards", 300, 300, turned=90))
    write_pdf(tmp_path / "a.pdf", [texts])
    (page,) = pages(tmp_path / "a.pdf")
    assert [line.text for line in page.lines] == ["left column", "right column", "upwards"]
    (x1, y1), (x2, y2) = page.lines[2].quad[:2]
    assert abs(x1 - x2) < 1 and y2 < y1  # from below to above


@pytest.mark.parametrize("turned", [0, 90])
def test_small_ink_does_not_divide_a_line(tmp_path: Path, turned: float) -> None:
    """Dots are far apart compared with their ink, but not compared with their font."""
    write_pdf(tmp_path / "a.pdf", [(Text(". . . -", 200, 300, size=24, turned=turned),)])
    (page,) = pages(tmp_path / "a.pdf")
    assert [line.text for line in page.lines] == [". . . -"]


def test_slanted_text_fails_its_page_alone(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", [TEXTS, (Text("draft", 100, 300, turned=40),), TEXTS])
    read = rows(tmp_path / "a.pdf")
    assert [row.reason for row in read if isinstance(row, FailedRow)] == ["slanted text"]
    assert [row.number for row in read if isinstance(row, RenderedPage)] == [0, 2]


def test_bad_files_are_failed_rows(tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (tmp_path / "empty.pdf").write_bytes(b"")
    write_pdf(tmp_path / "locked.pdf", [TEXTS], password="secret")
    write_pdf(tmp_path / "giant.pdf", [TEXTS], size=(14_400, 14_400))
    write_pdf(tmp_path / "long.pdf", [()] * 7)
    write_pdf(tmp_path / "nothing.pdf", [()])
    reasons = {
        path.stem: [row.reason if isinstance(row, FailedRow) else len(row.lines) for row in rows(path)]
        for path in tmp_path.iterdir()
        if path.stem != "long"
    }
    assert reasons == {
        "broken": ["broken PDF"],
        "empty": ["broken PDF"],
        "locked": ["PDF needs a password"],
        "giant": ["page too large"],
        "nothing": [0],
    }
    read = rows(tmp_path / "long.pdf", PdfSettings(most_pages=5))
    assert len(read) == 6 and read[-1] == FailedRow("too many pages", "7 pages; those after 5 are not read")


def command_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")


def rendering_children() -> list[int]:
    return [process for process in _descendants(os.getpid()) if "pdf_worker" in command_of(process)]


def test_a_page_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", [TEXTS])
    assert len(pages(tmp_path / "a.pdf")) == 1
    for child in rendering_children():
        os.kill(child, signal.SIGSTOP)
    assert rows(tmp_path / "a.pdf", PdfSettings(timeout_s=0.1)) == [
        FailedRow("renderer took too long", "more than 0.1 s")
    ]
    assert len(pages(tmp_path / "a.pdf")) == 1  # another process renders the next file


def test_a_child_that_was_killed_costs_no_page(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", [TEXTS] * 2)
    expected = rows(tmp_path / "a.pdf")
    children = rendering_children()
    read = read_pages(tmp_path / "a.pdf", PdfSettings())
    first = next(read)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert children and [first, *read] == expected


def test_a_child_that_always_ends_is_given_up() -> None:
    with pytest.raises(WorkerFailed, match="renderer crashed"):
        Worker("data_pipelines.ocr.no_such_module").ask({}, timeout_s=60)


@pytest.mark.slow
def test_mutated_files_never_end_a_run(tmp_path: Path) -> None:
    write_pdf(tmp_path / "whole.pdf", [TEXTS] * 2)
    whole = (tmp_path / "whole.pdf").read_bytes()
    rng = np.random.default_rng(0)
    seen = set()
    for number in range(150):
        payload = bytearray(whole)
        if number % 3 == 0:
            payload = payload[: int(rng.integers(len(payload)))]
        else:
            for _ in range(int(rng.integers(1, 30))):
                payload[int(rng.integers(len(payload)))] = int(rng.integers(256))
        (tmp_path / "mutated.pdf").write_bytes(payload)
        for row in rows(tmp_path / "mutated.pdf", PdfSettings(timeout_s=10)):
            seen.add(row.reason if isinstance(row, FailedRow) else "page")
            if isinstance(row, RenderedPage):
                assert Image.open(io.BytesIO(row.picture.encoded)).size == (row.picture.width, row.picture.height)
    assert (
        {"page", "broken PDF"}
        <= seen
        <= {
            *("page", "broken PDF", "broken page", "empty page", "page too large", "slanted text"),
            *("renderer took too long", "renderer crashed", "too many pages", "PDF needs a password"),
        }
    )


def test_lines_do_not_depend_on_the_direction_of_the_page() -> None:
    """The same characters turned by a quarter are the same lines, turned."""
    words = "one two"
    upright = [Character(c, (10.0 * i, 5.0, 10.0 * i + 8, 17.0), 0) if c != " " else c for i, c in enumerate(words)]
    turned = [
        c if isinstance(c, str) else Character(c.text, (100 - c.box[3], c.box[0], 100 - c.box[1], c.box[2]), 1)
        for c in upright
    ]
    (flat,) = lines_of(upright, 100, 100)
    (down,) = lines_of(turned, 100, 100)
    assert flat.text == down.text == words
    assert [(100 - y, x) for x, y in flat.quad] == list(down.quad)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(flat.quad[:2]))


def test_the_version_of_pdfium_knows_unmapped_glyphs() -> None:
    assert hasattr(pypdfium2.raw, "FPDFText_HasUnicodeMapError")
