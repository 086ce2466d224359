"""Coordinates in [0, 1000) and the written form of boxes and quadrilaterals."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.data import tags
from qwenvl_jax.runtime.errors import UserError


@given(st.integers(1, 5000), st.data())
def test_thousandths_are_the_exact_floor(size: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, size))
    assert tags.to_thousandths(value, size) == min(math.floor(Fraction(value) * 1000 / size), 999)


@given(st.integers(2, 3000), st.integers(2, 3000), st.data())
def test_boxes_come_back_within_a_thousandth(width: int, height: int, data: st.DataObject) -> None:
    x1, y1 = data.draw(st.floats(0, width * 0.9)), data.draw(st.floats(0, height * 0.9))
    x2 = data.draw(st.floats(x1, width, exclude_min=True))
    y2 = data.draw(st.floats(y1, height, exclude_min=True))
    text = tags.box_to_text([x1, y1, x2, y2], width, height)
    assert " " not in text
    [(ref, [box])] = tags.parse_boxes(f"<ref>it</ref><box>{text}</box>")
    assert ref == "it" and all(0 <= value < 1000 for value in box)
    assert tags.first_box(text) == box
    back = tags.to_pixels(box, width, height)
    for before, after, side in zip((x1, y1, x2, y2), back, (width, height) * 2, strict=True):
        assert -1e-6 <= before - after <= side / 1000 + 1e-6


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([-0.1, 0, 5, 5], "outside"),
        ([0, 0, 10.01, 5], "outside"),
        ([0, 0, 5, 21], "outside"),
        ([0, math.nan, 5, 5], "outside"),
        ([0, 0, math.inf, 5], "outside"),
        ([0, 0, "5", 5], "outside"),
        ([5, 0, 4, 5], "inverted"),
        ([0, 5, 4, 5], "inverted"),
        ([0, 5, 4], "four numbers"),
    ],
)
def test_wrong_boxes_are_user_errors(box: list[float], what: str) -> None:
    with pytest.raises(UserError, match=what):
        tags.box_to_text(box, 10, 20)


def test_quads() -> None:
    quad = [[0, 0], [10, 0], [10, 20], [0, 5]]
    text = tags.quad_to_text(quad, 10, 20)
    assert text == "(0,0),(999,0),(999,999),(0,250)"
    parsed = tags.parse_quads(f"<ref>a b</ref><quad>{text}</quad><ref>c</ref><quad>{text}</quad>")
    assert parsed == [
        ("a b", [((0, 0), (999, 0), (999, 999), (0, 250))]),
        ("c", [((0, 0), (999, 0), (999, 999), (0, 250))]),
    ]
    with pytest.raises(UserError, match="outside"):
        tags.quad_to_text([[0, 0], [11, 0], [10, 20], [0, 5]], 10, 20)
    with pytest.raises(UserError, match="four"):
        tags.quad_to_text(quad[:3], 10, 20)
    with pytest.raises(UserError, match="size"):
        tags.quad_to_text(quad, 0, 20)


def test_whole_answers() -> None:
    """The caption of the paper's Box B.1, in both spacings, and damaged answers."""
    answer = (
        "Beautiful shot of <ref>bees</ref><box>(661,612),(833,812)</box><box>(120,555),(265,770) </box> gathering "
        "nectars from<ref> an apricot flower</ref><box>(224,13),(399,313) </box>"
    )
    assert tags.parse_boxes(answer) == [
        ("bees", [(661, 612, 833, 812), (120, 555, 265, 770)]),
        ("an apricot flower", [(224, 13, 399, 313)]),
    ]
    assert tags.parse_boxes("<box>(1,2),(3,4)</box>") == [("", [(1, 2, 3, 4)])]
    assert tags.parse_boxes("<ref>a</ref> far <box>(1,2),(3,4)</box>") == [("", [(1, 2, 3, 4)])]
    assert tags.parse_boxes("<ref>a</ref><box>(1,2),(3,4)") == [("a", [(1, 2, 3, 4)])]
    assert tags.parse_boxes("<ref>a</ref><box>(1,2),(3,1000)</box><box>(1,2)</box>") == []
    twice = "<ref>dog</ref><box>(1,2),(3,4)</box><ref>dog</ref><box>(5,6),(7,8)</box>"
    assert tags.parse_boxes(twice) == [("dog", [(1, 2, 3, 4)]), ("dog", [(5, 6, 7, 8)])]


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("(176,106),(232,160)</box>", (176, 106, 232, 160)),
        ("(1.5,2),( 3,4) and (5,6),(7,8)", (1.5, 2, 3, 4)),
        ("no box", (0, 0, 0, 0)),
        ("(12),(3,4)", (0, 0, 0, 0)),
        ("(a,b),(3,4)", (0, 0, 0, 0)),
        ("(1,2,3),(3,4)", (0, 0, 0, 0)),
        ("(1,2)(3,4),(5,6)", (0, 0, 0, 0)),  # the pattern's first bracket swallows "1,2)(3,4"
    ],
)
def test_first_box_reads_like_the_released_evaluation(answer: str, box: tuple[float, ...]) -> None:
    assert tags.first_box(answer) == box


@given(st.text(alphabet="<>()/,boxrefquad 0123456789一", max_size=60))
def test_any_answer_parses(text: str) -> None:
    for _, boxes in tags.parse_boxes(text):
        assert all(0 <= value < 1000 for box in boxes for value in box)
    tags.parse_quads(text)
    assert len(tags.first_box(text)) == 4
