"""Screens of HTML files: what is visible is taught, exactly where it is; nothing is executed or fetched."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from data_pipelines.corpora.table import CORPORA
from data_pipelines.ocr.html import BROWSERS, HtmlSettings, read_screens
from data_pipelines.ocr.pdf import RenderedPage
from data_pipelines.pair import FailedRow, RawPair
from qwenvl_jax.runtime.errors import UserError
from tests.support.quads import quad_error

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed"),
]
SETTINGS = HtmlSettings(width=640, height=480)
Rows = list[RenderedPage | FailedRow]


def read(folder: Path, body: str, settings: HtmlSettings = SETTINGS, name: str = "a.html") -> Rows:
    (folder / name).write_text(f"<!doctype html><meta charset=utf-8>{body}")
    return list(read_screens(folder / name, folder, settings))


def screens(folder: Path, body: str, settings: HtmlSettings = SETTINGS) -> list[RenderedPage]:
    return [row for row in read(folder, body, settings) if isinstance(row, RenderedPage)]


def texts(folder: Path, body: str) -> list[str]:
    return [line.text for screen in screens(folder, body) for line in screen.lines]


def gray(page: RenderedPage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.picture.encoded)).convert("L")).astype(int)


def test_quads_are_where_the_ink_is(tmp_path: Path) -> None:
    """The pixels that differ from the page in which a paragraph is transparent are the paragraph's."""
    styles = (
        "font: 30px serif",
        "font: italic 13px/1 sans-serif; color: #246",
        "font: bold 18px monospace; color: red",
    )
    words = ("Judge my vow, sphinx", "of black quartz: fjord", "quick jumping, (zebras)")

    def body(without: int) -> str:
        shown = (f"{style}; visibility: {'hidden' if i == without else 'visible'}" for i, style in enumerate(styles))
        return "".join(f"<p style='margin:3px; {style}'>{text}" for style, text in zip(shown, words, strict=True))

    (whole,) = screens(tmp_path, body(-1))
    assert [line.text for line in whole.lines] == list(words)
    for index, line in enumerate(whole.lines):
        (part,) = screens(tmp_path, body(index))
        assert [other.text for other in part.lines] == [*words[:index], *words[index + 1 :]]
        assert quad_error(line.quad, np.abs(gray(whole) - gray(part)) > 60) <= 2


def test_a_paragraph_is_cut_at_its_line_ends(tmp_path: Path) -> None:
    text = "one <b>two</b> three<i>four</i> five six seven eight nine ten eleven twelve"
    lines = texts(tmp_path, f"<p style='width:200px; font: 20px sans-serif'>{text}")
    assert len(lines) > 2 and " ".join(lines) == "one two threefour five six seven eight nine ten eleven twelve"
    assert texts(tmp_path, "<pre>a   b\nc</pre><div>x<div>y</div>z</div>") == ["a b", "c", "x", "y", "z"]
    (page,) = screens(tmp_path, "<table border=1 style='color:red'><tr><td>left<td>right<tr><td>a<td>b</table>")
    assert [line.text for line in page.lines] == ["left", "right", "a", "b"]
    assert all(line.quad[2][1] - line.quad[0][1] < 18 for line in page.lines)
    assert texts(tmp_path, "<p style='text-transform:uppercase'>shout<p style='text-transform:capitalize'>it's me") == [
        "SHOUT",
        "It's Me",
    ]


HIDDEN = {
    "display": "<p style='display:none'>no</p>",
    "visibility": "<p style='visibility:hidden'>no</p>",
    "opacity": "<p style='opacity:0'>no</p>",
    "color": "<p style='color:#fff'>no</p>",
    "off the page": "<p style='position:absolute; left:-9999px'>no</p>",
    "clipped": "<div style='height:0; overflow:hidden'>no</div>",
    "covered": "<div style='position:relative'>no<i style='position:absolute; inset:0; background:#fff'></i></div>",
    "covered, clicks pass": "<div style='position:relative'>no"
    "<i style='position:absolute; inset:0; background:#fff; pointer-events:none'></i></div>",
    "indented": "<p style='text-indent:-999px; overflow:hidden'>no</p>",
    "template": "<template>no</template><noscript></noscript><script>no</script><style>no{}</style><title>no</title>",
    "closed": "<details><summary>yes</summary>no</details>",
}


@pytest.mark.parametrize("way", HIDDEN)
def test_text_that_cannot_be_seen_is_not_taught(tmp_path: Path, way: str) -> None:
    shown = texts(tmp_path, f"<p>seen</p>{HIDDEN[way]}<p>seen too</p>")
    assert [text for text in shown if text != "yes"] == ["seen", "seen too"]


def test_a_long_page_is_several_screens_that_cut_no_line(tmp_path: Path) -> None:
    body = "".join(f"<p style='margin:9px'>This is paragraph {number}.</p>" for number in range(100))
    pages = screens(tmp_path, body)
    shown = [line.text for page in pages for line in page.lines]
    assert shown == [f"This is paragraph {number}." for number in range(100)]
    assert len(pages) > 4
    assert all(page.picture.width == 640 and 288 <= page.picture.height <= 480 for page in pages[:-1])
    for page in pages:
        for line in page.lines:
            assert quad_error(line.quad, gray(page)[: page.picture.height] < 0) == float("inf")
            assert 0 <= line.quad[0][1] < line.quad[2][1] <= page.picture.height
    assert len(screens(tmp_path, body, HtmlSettings(640, 480, most_screens=2))) == 2


def test_scripts_do_not_run_and_the_network_is_not_reached(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/out.txt").write_text("x")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/inside.css").write_text("h1 { font-size: 50px }")
    (tmp_path / "site/link.css").symlink_to(tmp_path / "secret/out.txt")
    body = (
        "<meta http-equiv=refresh content='0;url=http://127.0.0.1:1/'><base href='http://page.invalid/'>"
        "<link rel=stylesheet href=inside.css><link rel=stylesheet href=link.css>"
        "<link rel=stylesheet href='../secret/out.txt'><link rel=stylesheet href='file:///etc/passwd'>"
        "<iframe src='http://127.0.0.1:1/'></iframe><img src='http://127.0.0.1:1/x.png'>"
        "<h1>heading</h1><script>document.body.textContent = 'script'</script>"
        "<p onclick=alert(1)>text <noscript>without scripts</noscript>"
    )
    (page,) = screens(tmp_path / "site", body)
    assert [line.text for line in page.lines] == ["heading", "text without scripts"]
    assert page.lines[0].quad[2][1] - page.lines[0].quad[0][1] > 30


def test_bad_files_are_failed_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "<p dir=rtl>\u05d0\u05d1\u05d2") == [
        FailedRow("slanted text", "text from right to left, in columns or turned")
    ]
    assert [
        getattr(row, "reason", "")
        for row in read(tmp_path, "<p style='transform:rotate(30deg); width:90px; margin:90px'>turned")
    ] == ["slanted text"]
    assert [getattr(row, "reason", "") for row in read(tmp_path, "a " * 60_000)] == ["too much text on one page"]
    (tmp_path / "binary.html").write_bytes(bytes(range(256)) * 10)
    assert list(read_screens(tmp_path / "binary.html", tmp_path, SETTINGS))
    (tmp_path / "empty.html").write_bytes(b"")
    (screen,) = read_screens(tmp_path / "empty.html", tmp_path, SETTINGS)
    assert isinstance(screen, RenderedPage) and screen.lines == ()


def test_characters_without_a_font_are_counted_and_five_are_named(tmp_path: Path) -> None:
    private = [chr(code) for code in range(0x10F800, 0x10F807)]
    (row,) = read(tmp_path, f"<p>{private[0]}{private[0]} words")
    assert row == FailedRow("no font for a character", f"{private[0]} (U+10F800)")
    (row,) = read(tmp_path, f"<p>{''.join(private)}")
    named = ", ".join(f"{character} (U+{ord(character):X})" for character in private[:5])
    assert row == FailedRow("no font for a character", f"{named} and 2 others")


def test_a_corpus_takes_fonts_from_the_cache_of_the_run(tmp_path: Path) -> None:
    """A font that only the cache has draws a character that no installed font has."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "mine"])
    builder.setupCharacterMap({0x10F800: "mine"})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "mine": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "mine": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Mine", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    (tmp_path / "cache/page_fonts").mkdir(parents=True)
    builder.save(tmp_path / "cache/page_fonts/mine.ttf")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/a.html").write_text("<meta charset=utf-8><p>\U0010f800\U0010f800")
    corpus = CORPORA["html_pages"]
    assert [getattr(row, "reason", "") for row in corpus.read(tmp_path / "site")] == ["no font for a character"]
    layout = corpus.layout.with_cache(str(tmp_path / "cache"))
    (pair,) = dataclasses.replace(corpus, layout=layout).read(tmp_path / "site")
    assert isinstance(pair, RawPair) and [line.text for line in pair.lines] == ["\U0010f800\U0010f800"]


@pytest.mark.parametrize(
    "name", ["a b.html", "#?%41.html", "..html", "\u4e2d\u6587.html", "a'\"<b>&.html", "a\nb.html", "\udcff.html"]
)
def test_hostile_names_are_only_names(tmp_path: Path, name: str) -> None:
    (row,) = read(tmp_path, "<p>here</p>", name=name)
    assert isinstance(row, RenderedPage) and [line.text for line in row.lines] == ["here"]


def test_a_pipe_under_the_name_of_a_picture_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (row,) = read(tmp_path, "<img src=pipe.png><p>here</p>")
    assert isinstance(row, RenderedPage) and [line.text for line in row.lines] == ["here"]


def test_without_chromium_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install chromium"):
        read(tmp_path, "<p>x")
