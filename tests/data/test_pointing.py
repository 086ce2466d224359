"""In which picture the regions of an answer lie, and their pixels."""

from __future__ import annotations

import importlib.resources

from qwenvl_jax.data import pointing
from qwenvl_jax.data.pointing import last_named, regions_of

SIZES = [(2000, 10), (100, 50)]


def test_regions_are_pixels_of_the_picture_that_is_meant() -> None:
    text = "<ref>it</ref><box>(100,200),(500,800)</box> and <box>(0,500),(1000,1000)</box>"
    assert regions_of(text, SIZES, 1) == [
        {"ref": "it", "image": 1, "box": [10.0, 10.0, 50.0, 40.0], "thousandths": [100, 200, 500, 800]},
        {"ref": "", "image": 1, "box": [0.0, 25.0, 100.0, 50.0], "thousandths": [0, 500, 1000, 1000]},  # the far edge
    ]
    quad = "<ref>sign</ref><quad>(0,0),(500,0),(500,500),(0,500)</quad>"
    assert regions_of(quad, SIZES, 0) == [
        {
            "ref": "sign",
            "image": 0,
            "quad": [[0.0, 0.0], [1000.0, 0.0], [1000.0, 5.0], [0.0, 5.0]],
            "thousandths": [[0, 0], [500, 0], [500, 500], [0, 500]],
        }
    ]


def test_an_answer_names_the_picture_of_the_regions_that_follow() -> None:
    box = "<box>(0,0),(500,500)</box>"
    text = f"{box} In Picture 2 {box}{box}, in <ref>Picture 1</ref>{box}, in Picture 3 {box}"
    assert [region["image"] for region in regions_of(text, SIZES, 0)] == [0, 1, 1, 0, 0]
    assert [region["image"] for region in regions_of(text, SIZES, 1, range(1, 2))] == [1, 1, 1, 1, 1]


def test_names_are_numbers_after_a_word_for_picture() -> None:
    assert last_named("Picture 1: and Image2", range(9)) == 1
    assert last_named("photo 3", range(9)) == 2
    assert last_named("在图12中", range(12)) == 11
    for text in ("Picture 0", "a picture of 3 dogs", "picturesque 1", "Picture 12345", "1"):
        assert last_named(text, range(20_000)) is None, text


def test_the_page_reads_names_by_the_same_pattern() -> None:
    script = importlib.resources.files("qwenvl_jax.serving.page").joinpath("answer.js").read_text(encoding="utf-8")
    assert f"const NAME = /{pointing._NAME.pattern}/gi;" in script
