"""Pictures of words: quads hold exactly the drawn pixels, words come from the lexicon, fonts cover them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_pipelines.ocr.fonts import Font
from data_pipelines.quickstart import drawn_stamps
from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.lexicon import vocabularies
from data_pipelines.quickstart.ocr_pictures import DRAWN_COVERAGE, Lexicon, OcrSettings, render_words
from qwenvl_jax.runtime.errors import UserError

PILLOW = Font("Pillow default", "")
WORDS = Lexicon(("tiger", "yellow", "bus", "walnut"), (PILLOW,))


@pytest.mark.parametrize("grid", [1, 5])
@pytest.mark.parametrize("level", [20, 235])
def test_quads_are_tight_around_the_drawn_pixels(level: int, grid: int) -> None:
    flat = [np.full((120, 120, 3), level, np.uint8)]
    for seed in range(40):
        picture = render_words(np.random.default_rng(seed), "en", WORDS, flat, OcrSettings(grid_px=grid))
        base = picture.image_HWC[0, 0].astype(int)  # the margin is never drawn on
        changed = np.abs(picture.image_HWC.astype(int) - base).max(axis=-1)
        inside = np.zeros(changed.shape, bool)
        for line in picture.lines:
            (x1, y1), (x2, y1b), (x2b, y2), (x1b, y2b) = line.quad
            assert (x1, y1, x2, y2) == (x1b, y1b, x2b, y2b) and 1 <= x1 < x2 <= 99 and 1 <= y1 < y2 <= 99
            assert all(coordinate % grid == 0 for coordinate in (x1, y1, x2, y2))
            inside[y1:y2, x1:x2] = True
            part = changed[y1:y2, x1:x2]
            strong = part >= part.max() * DRAWN_COVERAGE / 255 - 2
            assert strong.any(axis=0)[[0, -1]].all() and strong.any(axis=1)[[0, -1]].all()  # all four edges touched
            assert part.max() >= 120  # legible: far from its background
        assert changed[~inside].max() == 0


def test_words_are_different_and_one_above_the_other() -> None:
    flat = [np.full((120, 120, 3), 90, np.uint8)]
    counts = set()
    for seed in range(30):
        lines = render_words(np.random.default_rng(seed), "en", WORDS, flat, OcrSettings()).lines
        counts.add(len(lines))
        assert {line.text for line in lines} <= set(WORDS.words) and len({line.text for line in lines}) == len(lines)
        assert all(a.quad[2][1] <= b.quad[0][1] for a, b in itertools.pairwise(lines))
        assert all(line.quad[2][1] - line.quad[0][1] >= 9 for line in lines)
    assert counts == {1, 2}


def test_same_seed_same_picture(ingredients: Ingredients) -> None:
    def made(seed: int) -> np.ndarray:
        lexicon = ingredients.lexicons["en"]
        return render_words(np.random.default_rng(seed), "en", lexicon, ingredients.views, OcrSettings()).image_HWC

    assert np.array_equal(made(3), made(3)) and not np.array_equal(made(3), made(4))


def test_vocabularies_come_from_the_captions() -> None:
    english, chinese = vocabularies(drawn_stamps.stamps(), [("red star", "红色星形")], [PILLOW], [])
    captions = " ".join(stamp.caption_en.lower() for stamp in drawn_stamps.stamps())
    assert english[:2] == ["red", "star"] and all(word in captions and 3 <= len(word) <= 6 for word in english)
    assert chinese == []  # no Chinese font given
    assert vocabularies(drawn_stamps.stamps(), [], [], [])[0] == []


def test_fonts_know_which_characters_they_can_draw() -> None:
    assert PILLOW.covers("tiger") and not PILLOW.covers("老虎")
    assert not PILLOW.covers("\U000f0000")


def test_settings_that_allow_no_text_are_refused() -> None:
    for wrong in (OcrSettings(min_english_px=60), OcrSettings(max_words=3), OcrSettings(background_push=2.0)):
        with pytest.raises(UserError):
            wrong.check()
