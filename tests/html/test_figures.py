"""Pictures with regions, on a page and as pixels."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from qwenvl_jax.html.figures import DRAWN_SIDE, SHOWN_SIDE, Region, corners_of_box, draw, draw_boxes, figure


def embedded(svg: str) -> Image.Image:
    """The picture inside a figure."""
    (payload,) = re.findall(r'href="data:image/[a-z]+;base64,([^"]+)"', svg)
    return Image.open(io.BytesIO(base64.b64decode(payload)))


@pytest.mark.parametrize("size", [(8, 8000), (4000, 3000), (1, 1)])
def test_a_large_picture_is_scaled_down_under_its_regions(size: tuple[int, int]) -> None:
    svg = figure(Image.new("RGB", size), alt="")
    assert max(embedded(svg).size) <= SHOWN_SIDE
    assert f'viewBox="0 0 {size[0]} {size[1]}"' in svg
    assert f'width="{size[0]}" height="{size[1]}" preserveAspectRatio="none"' in svg


def test_regions_have_the_units_that_the_figure_is_given() -> None:
    region = Region(corners_of_box((0, 12.5, 500, 999)))
    svg = figure(Image.new("RGB", (28, 28)), [region], alt="", units=(1000, 1000))
    assert 'viewBox="0 0 1000 1000"' in svg
    assert svg.count('points="0,12.5 500,12.5 500,999 0,999"') == 2  # the outline and the halo below it


def test_a_faint_region_has_neither_halo_nor_label() -> None:
    corners = corners_of_box((1, 1, 5, 5))
    image = Image.new("RGB", (28, 28))
    svg = figure(image, [Region(corners, label="7")], alt="")
    assert 'class="halo"' in svg
    assert ">7</text>" in svg
    svg = figure(image, [Region(corners, label="7", faint=True, dashed=True)], alt="")
    assert 'class="region dashed faint"' in svg
    assert "halo" not in svg
    assert "</text>" not in svg


def test_texts_of_a_figure_are_escaped() -> None:
    svg = figure(Image.new("RGB", (9, 9)), [Region([(1, 1), (2, 2)], label="<b>")], alt='"><script>')
    assert "<b>" not in svg
    assert "<script>" not in svg


def test_drawn_boxes_change_the_picture_where_they_are() -> None:
    image = Image.new("RGB", (100, 50), "white")
    drawn = np.asarray(draw_boxes(image, [("狗", (20, 10, 60, 40)), ("", (90, 45, 80, 30))], side=100))
    assert drawn.shape == (50, 100, 3)
    assert (drawn[25, 20] != 255).any()
    assert (drawn[25, 40] == 255).all()
    assert (drawn[40, 80] != 255).any()


@pytest.mark.parametrize("size", [(8, 8000), (8000, 8), (1, 1), (3000, 2500), (1, 60000)])
def test_a_drawn_picture_is_bounded_on_both_sides(size: tuple[int, int]) -> None:
    drawn = draw_boxes(Image.new("RGB", size, "white"), [("it", (0, 0, size[0], size[1]))])
    assert max(drawn.size) <= DRAWN_SIDE
    assert min(drawn.size) >= 1
    assert min(np.asarray(drawn).min(axis=(0, 1))) < 255  # the box is there


def test_a_quadrilateral_is_drawn_at_the_scale_of_its_picture() -> None:
    corners = [(2, 2), (8, 3), (7, 8), (1, 7)]
    drawn = draw(Image.new("RGB", (10, 10), "white"), [Region(corners)], scale=4, width=1)
    assert drawn.size == (40, 40)
    for x, y in corners:
        assert (np.asarray(drawn)[4 * y, 4 * x] != 255).any()
    assert (np.asarray(drawn)[20, 20] == 255).all()
