"""Coordinates in [0, 1000) and the written form of boxes and quadrilaterals."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.conversion.torch_model.grounding_qwen import GroundingMixin
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
        ([-0.5, 0, 5, 5], "outside"),
        ([0, 0, 10.5, 5], "outside"),
        ([0, 0, 5, 21], "outside"),
        ([0, 0, 10**400, 5], "finite numbers"),
        ([0, math.nan, 5, 5], "finite numbers, not nan"),
        ([0, 0, math.inf, 5], "finite numbers"),
        ([0, 0, "5", 5], "finite numbers, not '5'"),
        ([0, 0, True, 5], "finite numbers, not True"),
        ([0, 0, None, 5], "finite numbers, not None"),
        ([5, 0, 4, 5], "inverted"),
        ([0, 5, 4, 5], "inverted or empty"),
        ([10.1, 0, 10.4, 5], "inverted or empty"),  # nothing is left of it inside
        ([0, 5, 4], "four numbers"),
        ("0055", "four numbers"),
    ],
)
def test_wrong_boxes_are_user_errors(box: list[float], what: str) -> None:
    with pytest.raises(UserError, match=what):
        tags.box_to_text(box, 10, 20)


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ([0, 0, 10.01, 20], "(0,0),(999,999)"),  # an annotation that was rounded over the edge
        ([-0.49, -0.2, 10.49, 20.49], "(0,0),(999,999)"),
        ([-0.0, 0.0, 5.0, 5], "(0,0),(500,250)"),
        ([5, 5, 5.001, 5.001], "(500,250),(500,250)"),  # thinner than a thousandth
        ([9.999, 0, 10, 20], "(999,0),(999,999)"),
    ],
)
def test_boxes_at_the_edge_and_thin_ones(box: list[float], written: str) -> None:
    assert tags.box_to_text(box, 10, 20) == written


@given(st.integers(1, 3000), st.lists(st.floats(-2, 3002) | st.integers(-2, 3002), min_size=4, max_size=4))
def test_half_a_pixel_over_the_edge_is_clipped_and_more_refused(side: int, box: list[float]) -> None:
    try:
        clipped = tags.clip_points(box, side, side, "box")
    except UserError:
        assert any(value <= -0.5 or value >= side + 0.5 for value in box)
        return
    assert all(0 <= now <= side and abs(now - value) < 0.5 for now, value in zip(clipped, box, strict=True))
    assert all(now == value for now, value in zip(clipped, box, strict=True) if 0 <= value <= side)


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
    assert tags.quad_to_text([[-0.3, 0], [10.4, 0], [10, 20.4], [0, 5]], 10, 20) == text
    wrong: Any
    for wrong in (quad[:3], "abcd", ["ab", "cd", "ef", "gh"], [[0, 0, 0]] * 4):
        with pytest.raises(UserError, match="four"):
            tags.quad_to_text(wrong, 10, 20)
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
    assert tags.parse_boxes("<ref>a</ref><box>(1,2),(3,1001)</box><box>(1,2)</box><box>(1,2),(3,4),(5,6)</box>") == []
    assert tags.parse_boxes("<ref>a<box>(1,2),(3,4)</box>") == [("a", [(1, 2, 3, 4)])]
    assert tags.parse_boxes("<ref>a<ref>b</ref><box>(1,2),(3,4)</box>") == [("b", [(1, 2, 3, 4)])]
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


def test_1000_is_the_far_edge_wherever_a_place_is_read() -> None:
    answer = "<ref>it</ref><box>(12,5),(1000,990)</box><box>(1000,1000),(1000,1000)</box>"
    assert tags.parse_boxes(answer) == [("it", [(12, 5, 1000, 990), (1000, 1000, 1000, 1000)])]
    assert tags.to_pixels((12, 5, 1000, 990), 640, 480) == pytest.approx((7.68, 2.4, 640, 475.2))
    assert tags.first_box("(12,5),(1000,990)") == (12, 5, 1000, 990)
    [(_, [quad])] = tags.parse_quads("<ref>it</ref><quad>(0,0),(1000,0),(1000,1000),(0,1000)</quad>")
    assert quad == ((0, 0), (1000, 0), (1000, 1000), (0, 1000))
    assert tags.read_points("(12,5),(1000,990)", 2) == [12, 5, 1000, 990]
    assert tags.read_points(" ( 12, 5 )\n,\u3000(1000,990) ", 2) == [12, 5, 1000, 990]
    for other in ("(12,5),(1001,990)", "(12,5),(0999,990)", "(-1,5),(9,9)", "(1.5,5),(9,9)", "(１,5),(9,9)", "(1,5)"):
        assert tags.read_points(other, 2) is None


@pytest.mark.parametrize(
    ("answer", "refs"),
    [
        ("<ref>ab</ref><quad>(0,0),(1,1),(2,2),(3,3)</quad><ref>cd</ref>", ["ab", "cd"]),
        ("<ref>abc<ref>def</ref>", ["abc", "def"]),
        ("<ref>ab<quad>(0,0)", ["ab"]),
        ("<ref>ab</box><ref>cd\n", ["ab", "cd\n"]),
        ("<ref></ref><ref>", ["", ""]),
        ("ab</ref>", []),
    ],
)
def test_a_reference_ends_where_the_next_tag_begins(answer: str, refs: list[str]) -> None:
    assert tags.parse_refs(answer) == refs


@given(st.lists(st.sampled_from(["<ref>", "</ref>", "<box>(1,2),(3,1000)</box>", "<quad>", "a ", "\n"])).map("".join))
def test_every_box_of_an_answer_is_found_once(answer: str) -> None:
    assert sum(len(boxes) for _, boxes in tags.parse_boxes(answer)) == answer.count("<box>")
    assert len(tags.parse_refs(answer)) == answer.count("<ref>")


SOUP = ["<ref>", "</ref>", "<ref>a</ref>", "<box>(1,2),(3,1000)</box>", "<box>(1,2),(3,4)", "<box>(1,1001),(2,3)</box>"]
SOUP += ["<box>(1,2),(3,4),(5,6)</box>", "<box>(1.5,2),(3,4)</box>", "a ", " ", "\n", "</box>"]


@given(st.lists(st.sampled_from(SOUP), max_size=9).map("".join))
def test_the_release_reads_the_boxes_of_any_answer_alike(answer: str) -> None:
    ours = [(ref, box) for ref, boxes in tags.parse_boxes(answer) for box in boxes]
    assert GroundingMixin.parse_boxes(answer) == ours


def test_normal_form() -> None:
    assert tags.normal_form("cafe\u0301") == "café" and tags.normal_form("a\ud800") == "a\ufffd"
    assert tags.normal_form("\ud83e\udd8a") == "\U0001f98a"  # a pair is its character
