"""Spans and boxes of grounded captions (paper, A.3): the choice against all subsets, and every rule on known cases."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.clean.grounding import (
    CHOICES,
    Span,
    boxes_in_picture,
    flat_spans,
    greedy,
    most_boxes,
    spans_in_text,
)
from data_pipelines.clean.rule import Dropped, Rewritten, Verdict
from data_pipelines.pair import Box, Picture, RawPair, Region

TEXT = "A café 😀 with two dogs in front of a red house"
LEFT: Box = (0, 8, 6, 16)
RIGHT: Box = (12, 8, 18, 16)
HOUSE: Box = (3, 0, 24, 12)


def pair(*regions: Region, text: str = TEXT, size: tuple[int, int] = (24, 16)) -> RawPair:
    return RawPair("1", "grit", "MS-PL", "en", (Picture(b"encoded", "", *size),), (text,), regions=regions)


def region(phrase: str, *boxes: Box, score: float = 1.0) -> Region:
    start = TEXT.index(phrase)
    return Region(phrase, boxes, start, start + len(phrase), score)


def rewritten(verdict: Verdict) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    """The regions and the causes."""
    assert isinstance(verdict, Rewritten)
    return verdict.pair.regions, verdict.causes


def overlap(first: Span, second: Span) -> bool:
    return first.start < second.end and second.start < first.end


def disjoint(spans: Sequence[Span]) -> bool:
    return not any(overlap(*both) for both in itertools.combinations(spans, 2))


def best_of_all_subsets(spans: Sequence[Span]) -> tuple[int, float]:
    """The most boxes of any set of spans that do not overlap, and the highest score of such a set."""
    sets = [
        chosen for count in range(len(spans) + 1) for chosen in itertools.combinations(spans, count) if disjoint(chosen)
    ]
    return max((sum(span.boxes for span in chosen), math.fsum(span.score for span in chosen)) for chosen in sets)


spans_of_a_caption = st.lists(
    st.builds(
        lambda start, length, boxes, eighths: Span(start, start + length, boxes, eighths / 8),
        st.integers(0, 20),
        st.integers(1, 12),
        st.integers(1, 4),
        st.integers(0, 8),
    ),
    max_size=9,
    unique_by=lambda span: (span.start, span.end),
)


@settings(max_examples=250, deadline=None)
@given(spans_of_a_caption)
def test_most_boxes_is_the_best_of_all_subsets(spans: list[Span]) -> None:
    chosen = [spans[index] for index in most_boxes(spans)]
    assert disjoint(chosen)
    assert chosen == sorted(chosen, key=lambda span: span.start)
    best = best_of_all_subsets(spans)
    assert (sum(span.boxes for span in chosen), math.fsum(span.score for span in chosen)) == best


@settings(max_examples=150, deadline=None)
@given(spans_of_a_caption)
def test_greedy_is_disjoint_and_nothing_can_be_added(spans: list[Span]) -> None:
    chosen = [spans[index] for index in greedy(spans)]
    assert disjoint(chosen)
    assert sum(span.boxes for span in chosen) <= best_of_all_subsets(spans)[0]
    for span in spans:
        assert span in chosen or not disjoint([*chosen, span])


def test_greedy_is_not_always_a_maximum() -> None:
    spans = [Span(0, 30, 2), Span(0, 5, 1), Span(10, 15, 1), Span(20, 25, 1)]
    assert greedy(spans) == [0]
    assert most_boxes(spans) == [1, 2, 3]


def test_no_spans() -> None:
    assert most_boxes([]) == greedy([]) == []


def test_spans_are_trimmed_and_those_outside_the_text_removed() -> None:
    inside = Region("wrong words", (LEFT,), 1, 7)  # " café "
    verdict = spans_in_text(
        pair(
            inside,
            Region("", (LEFT,), 6, 7),
            Region("", (LEFT,), 40, len(TEXT) + 1),
            Region("", (LEFT,), -3, 4),
            Region("", (LEFT,), 9, 9),
            Region("not from the caption", (RIGHT,)),
            region("😀", HOUSE),
        )
    )
    regions, causes = rewritten(verdict)
    assert regions == (Region("café", (LEFT,), 2, 6), Region("not from the caption", (RIGHT,)), region("😀", HOUSE))
    assert sorted(causes) == ["spaces trimmed", "span outside the text", "span outside the text",
                              "span outside the text", "span without a word"]  # fmt: skip


def test_good_spans_stay_as_they_are() -> None:
    good = pair(region("two dogs", LEFT, RIGHT), Region("free", (HOUSE,)))
    assert spans_in_text(good) is good


def test_no_region_left_drops_the_pair() -> None:
    assert spans_in_text(pair(Region("", (LEFT,), 90, 95))) == Dropped("no region is left")
    assert boxes_in_picture(pair(region("two dogs", (5, 5, 5, 9)))) == Dropped("no region is left")


@pytest.mark.parametrize(
    ("box", "expected", "cause"),
    [
        ((0, 0, 24, 16), (0, 0, 24, 16), ""),
        ((-1, -0.5, 25, 16.5), (0, 0, 24, 16), "box clipped"),
        ((-1.3, 0, 10, 10), None, "box outside its picture"),
        ((0, 0, 10, 17), None, "box outside its picture"),
        ((3, 3, 3.9, 10), None, "degenerate box"),
        ((3, 3, 10, 3), None, "degenerate box"),
        ((10, 3, 3, 10), None, "degenerate box"),
        ((23.5, 3, 25, 10), None, "degenerate box"),  # half a pixel is left
        ((0, 0, math.nan, 4), None, "box that is not finite"),
        ((0, 0, math.inf, 4), None, "box that is not finite"),
    ],
)
def test_boxes_are_clipped_or_removed(box: Box, expected: Box | None, cause: str) -> None:
    verdict = boxes_in_picture(pair(region("two dogs", box, RIGHT)))
    if not cause:
        assert isinstance(verdict, RawPair)
        assert verdict.regions[0].boxes == (expected, RIGHT)
        return
    regions, causes = rewritten(verdict)
    assert causes == (cause,)
    assert regions[0].boxes == ((expected, RIGHT) if expected else (RIGHT,))


def test_boxes_need_the_size_of_the_picture() -> None:
    assert boxes_in_picture(pair(region("two dogs", LEFT), size=(0, 0))) == Dropped("picture without a size")
    without = pair(size=(0, 0))
    assert boxes_in_picture(without) is without


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.floats(-60, 60, allow_nan=False)] * 4), st.floats(0, 0.5))
def test_every_box_that_is_left_is_inside(box: Box, overhang: float) -> None:
    verdict = boxes_in_picture(pair(region("two dogs", box)), overhang=overhang)
    if isinstance(verdict, Dropped):
        return
    kept = verdict.pair if isinstance(verdict, Rewritten) else verdict
    x1, y1, x2, y2 = kept.regions[0].boxes[0]
    assert 0 <= x1 <= x2 - 1
    assert 0 <= y1 <= y2 - 1
    assert x2 <= 24
    assert y2 <= 16
    assert boxes_in_picture(kept, overhang=overhang) is kept


def test_nested_spans_give_way_to_the_most_boxes() -> None:
    whole = region(TEXT, (0, 0, 24, 16))
    dogs = region("two dogs", LEFT, RIGHT)
    house = region("a red house", HOUSE)
    regions, causes = rewritten(flat_spans(pair(whole, dogs, house)))
    assert regions == (dogs, house, dataclasses.replace(whole, start=-1, end=-1))
    assert causes == ("nested span",)


def test_equal_spans_share_their_boxes_in_the_order_of_the_corpus() -> None:
    first, second = region("two dogs", RIGHT, score=0.5), region("two dogs", LEFT, RIGHT, score=0.75)
    regions, causes = rewritten(flat_spans(pair(first, second)))
    assert regions == (region("two dogs", RIGHT, LEFT, score=0.75),)
    assert causes == ("equal spans joined",)


def test_an_equal_box_stays_with_the_shortest_span() -> None:
    noun = region("two dogs", LEFT)
    expression = region("two dogs in front of a red house", LEFT)
    regions, causes = rewritten(flat_spans(pair(expression, noun)))
    assert set(regions) == {noun, dataclasses.replace(expression, start=-1, end=-1)}
    assert causes == ("equal box under a longer span",)


def test_a_span_that_loses_one_box_keeps_the_other_and_its_phrase() -> None:
    noun = region("dogs", LEFT)
    other = region("a red house", LEFT, HOUSE)
    regions, causes = rewritten(flat_spans(pair(noun, other)))
    assert set(regions) == {noun, region("a red house", HOUSE), dataclasses.replace(other, start=-1, end=-1)}
    assert causes == ("equal box under a longer span",)


def test_flat_regions_stay_as_they_are() -> None:
    flat = pair(region("café", HOUSE), region("two dogs", LEFT, RIGHT))
    assert flat_spans(flat) is flat
    assert flat_spans(pair()) == pair()


words = TEXT.split()
regions_of_a_caption = st.lists(
    st.builds(
        lambda first, count, boxes: (first, min(first + count, len(words)), tuple(boxes)),
        st.integers(0, len(words) - 1),
        st.integers(1, 6),
        st.lists(st.sampled_from((LEFT, RIGHT, HOUSE, (0.0, 0.0, 24.0, 16.0))), min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=200, deadline=None)
@given(regions_of_a_caption, st.sampled_from(sorted(CHOICES)))
def test_the_caption_has_no_nested_span_and_no_box_twice(
    drawn: list[tuple[int, int, tuple[Box, ...]]], choose: str
) -> None:
    raw = pair(*(region(" ".join(words[first:end]), *boxes) for first, end, boxes in drawn))
    verdict = flat_spans(raw, choose=choose)
    assert not isinstance(verdict, Dropped)
    kept = verdict.pair if isinstance(verdict, Rewritten) else verdict
    spans = [Span(each.start, each.end, len(each.boxes)) for each in kept.regions if each.start >= 0]
    assert spans
    assert disjoint(spans)
    boxes = [box for each in kept.regions if each.start >= 0 for box in each.boxes]
    assert len(boxes) == len(set(boxes))
    assert {each.phrase for each in kept.regions} == {each.phrase for each in raw.regions}  # no phrase is lost
    assert flat_spans(kept, choose=choose) is kept
