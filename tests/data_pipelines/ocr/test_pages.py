"""Rules of pages: sizes, characters and blocks, at their limits."""

from __future__ import annotations

import pytest

from data_pipelines.clean.rule import Dropped
from data_pipelines.pair import Line, Picture, RawPair
from data_pipelines.recipes import pages

QUAD = ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0))


def page(*texts: str, width: int = 300, height: int = 400) -> RawPair:
    lines = tuple(Line(text, QUAD) for text in texts)
    return RawPair("a", "pdf_pages", "x", pictures=(Picture(b"x", width=width, height=height),), lines=lines)


def test_a_page_with_a_short_side_is_dropped() -> None:
    assert pages.page_size(page("a", width=224, height=224), least=224) == page("a", width=224, height=224)
    assert pages.page_size(page("a", height=223), least=224) == Dropped("too small a picture")


def test_spaces_do_not_count_as_characters() -> None:
    for texts, verdict in (
        (("abc d", "e"), None),
        (("a b c d",), "too few characters"),
        ((), "too few characters"),
        (("abcdefgh",), None),
        (("abcdefgh", "i"), "too many characters"),
    ):
        pair = page(*texts)
        assert pages.page_characters(pair, least=5, most=8) == (Dropped(verdict) if verdict else pair)


@pytest.mark.parametrize("character", ["\u0100", "\u017f", "\u0180", "\u024f"])
def test_latin_extended_blocks(character: str) -> None:
    assert isinstance(pages.latin_extended(page("fine", f"a{character}")), Dropped)


@pytest.mark.parametrize("character", ["\ue000", "\uf8ff", "\U000f0000", "\U0010fffd"])
def test_private_use_areas(character: str) -> None:
    assert isinstance(pages.private_use(page(f"{character}b")), Dropped)


def test_neighbours_of_the_blocks_are_kept() -> None:
    pair = page("\u00e9\u00ff\u0250 \ud7ff\uf900 \U0001f600 \U000effff 中文。")
    assert pages.latin_extended(pair) is pair and pages.private_use(pair) is pair and pages.unmapped(pair) is pair


def test_glyphs_without_characters() -> None:
    for character in ("\ufffd", "\x02", "\x7f"):
        assert isinstance(pages.unmapped(page(f"a{character}")), Dropped)
