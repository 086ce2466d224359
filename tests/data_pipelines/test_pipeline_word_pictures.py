"""Pictures made of words agree with a pixel mask of the same boxes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.quickstart.word_pictures import SIGN, word_picture

SIDE, GRID = 100, 4
boxes = st.tuples(*[st.integers(0, 98)] * 2, *[st.integers(1, 100)] * 2).map(
    lambda b: (b[0], b[1], min(SIDE, b[0] + b[2]), min(SIDE, b[1] + b[3]))
)


@given(box=boxes)
def test_a_cell_names_what_covers_a_third_of_it(box):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    words = word_picture([("owl", box)], "sky", SIDE, GRID).split(" ")
    cell = SIDE // GRID
    shares = mask.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3)).ravel()
    assert words == ["owl" if share >= 0.35 else "sky" for share in shares]


def test_the_larger_share_wins_and_rows_come_from_the_top():
    words = word_picture([("owl", (0, 0, 50, 50)), ("bus", (0, 10, 100, 25))], SIGN, SIDE, GRID).split(" ")
    assert words[:4] == ["owl", "owl", "bus", "bus"]
    assert words[4:8] == ["owl", "owl", SIGN, SIGN] and set(words[8:]) == {SIGN}
