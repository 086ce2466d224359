"""Synthetic pages: a function of seed and number, quads where the ink is, text as it is written."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic import Ingredients, Page, render_page
from data_pipelines.ocr.synthetic_settings import CLEAN, PageSettings
from data_pipelines.ocr.synthetic_text import Texts
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora.rendered import ENGLISH
from tests.support.quads import quad_error


def gray(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.jpeg)).convert("L")).astype(int)


def test_a_page_is_a_function_of_seed_and_number(english: Ingredients) -> None:
    page = render_page(3, 5, english, PageSettings())
    assert page == render_page(3, 5, english, PageSettings())
    others = [render_page(3, 6, english, PageSettings()), render_page(4, 5, english, PageSettings())]
    assert len({page.jpeg, *(other.jpeg for other in others)}) == 3


@pytest.mark.parametrize("elastic", [0.0, 1.0])
def test_quads_are_where_the_ink_is(english: Ingredients, elastic: float) -> None:
    """The pixels that differ between the page and the page without a line are the line's."""
    settings = dataclasses.replace(CLEAN, elastic_alpha=(elastic, elastic), elastic_sigma=(0.5, 0.5))
    errors = []
    for number in range(3):
        page = render_page(0, number, english, settings)
        for index in range(0, len(page.lines), 5):
            without = render_page(0, number, english, settings, without=index)
            assert without.lines == page.lines[:index] + page.lines[index + 1 :]
            changed = np.abs(gray(page) - gray(without)) > 70
            errors.append(quad_error(page.lines[index].quad, changed))
    assert len(errors) > 8 and max(errors) <= 2.0


def test_the_measure_notices_a_quad_that_is_off(english: Ingredients) -> None:
    page = render_page(0, 1, english, CLEAN)
    changed = np.abs(gray(page) - gray(render_page(0, 1, english, CLEAN, without=0))) > 70
    moved = [(x + 4, y) for x, y in page.lines[0].quad]
    assert quad_error(page.lines[0].quad, changed) <= 2 < quad_error(moved, changed)


def test_rows_have_whole_words_of_the_texts_in_their_order(english: Ingredients) -> None:
    words = {word for text in ENGLISH for word in text.split()}
    joined = " ".join([*ENGLISH, *ENGLISH])
    for number in range(6):
        for line in render_page(1, number, english, PageSettings()).lines:
            assert set(line.text.split()) <= words and line.text in joined


def test_quads_are_convex_clockwise_and_in_the_picture(english: Ingredients) -> None:
    for number in range(6):
        page = render_page(2, number, english, PageSettings())
        assert Image.open(io.BytesIO(page.jpeg)).size == (page.width, page.height)
        for line in page.lines:
            corners = np.asarray(line.quad)
            assert (corners >= 0).all() and (corners <= (page.width, page.height)).all()
            sides = np.roll(corners, -1, axis=0) - corners
            after = np.roll(sides, -1, axis=0)
            assert (sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0] > 0).all()
            assert sides[0][0] > 0  # the text runs to the right


def test_a_page_without_lines_does_not_end_a_run(english: Ingredients) -> None:
    chinese = dataclasses.replace(english, texts=Texts(["只有汉字"]), fonts=english.fonts[:1])
    if english.fonts[0].covers("只"):
        pytest.skip("the first font of this machine has Chinese characters")
    assert render_page(0, 0, chinese, PageSettings()).lines == ()


def test_pictures_that_cannot_be_read_are_passed_over(photograph_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "b.jpg").write_bytes((photograph_folder / "0.jpg").read_bytes())
    backdrop = Photographs.in_folders([tmp_path]).backdrop(np.random.default_rng(0), 90, 120, 3.0)
    assert backdrop.shape == (120, 90, 3) and backdrop.std() > 5
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no readable pictures"):
        Photographs.in_folders([tmp_path]).backdrop(np.random.default_rng(0), 90, 120, 3.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="name a folder of photographs"):
        Photographs.in_folders([tmp_path / "empty"])


def test_settings_are_read_and_checked() -> None:
    settings = PageSettings.from_json({"noise": [0, 0], "max_row": 4})
    assert settings == dataclasses.replace(PageSettings(), noise=(0, 0), max_row=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nose": [0, 1]}, "x.json has an unknown setting 'nose'; did you mean 'noise'?"),
        ({"zzz": 1}, "x.json has an unknown setting 'zzz'; remove it, or name a setting of ocr/synthetic_settings.py"),
        ({"noise": 3}, "x.json has 3 as setting noise; write a list of two numbers"),
        ({"max_row": [1, 2]}, "x.json has [1, 2] as setting max_row; write one number"),
        (
            {"noise": [8, 2]},
            "x.json has [8, 2] as setting noise; write two numbers from 0 to 128, the smaller one first",
        ),
        ({"fullscreen": 2}, "x.json has 2 as setting fullscreen; write a number from 0 to 1"),
        ({"fullscreen": True}, "x.json has True as setting fullscreen; write one number"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_remedy(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        PageSettings.from_json(wrong, "x.json")
    assert str(refused.value) == message
