"""Pictures made of words agree with a pixel mask of the same boxes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.quickstart.word_pictures import SIGN, Box, word_picture

SIDE, GRID = 100, 4


def box_at(x: int, y: int, width: int, height: int) -> Box:
    """The box, cut off at the edges of the picture."""
    return x, y, min(SIDE, x + width), min(SIDE, y + height)


CORNERS = st.integers(0, 98)
LENGTHS = st.integers(1, 100)
BOXES = st.builds(box_at, CORNERS, CORNERS, LENGTHS, LENGTHS)


@given(box=BOXES)
def test_a_cell_names_the_object_that_covers_a_third_of_it(box: Box) -> None:
    x1, y1, x2, y2 = box
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y1:y2, x1:x2] = True
    words = word_picture([("owl", box)], "sky", SIDE, GRID).split(" ")
    cell = SIDE // GRID
    shares = mask.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3)).ravel()
    assert words == ["owl" if share >= 0.35 else "sky" for share in shares]


def test_the_larger_share_wins_and_rows_come_from_the_top() -> None:
    words = word_picture([("owl", (0, 0, 50, 50)), ("bus", (0, 10, 100, 25))], SIGN, SIDE, GRID).split(" ")
    assert words[:4] == ["owl", "owl", "bus", "bus"]
    assert words[4:8] == ["owl", "owl", SIGN, SIGN] and set(words[8:]) == {SIGN}
