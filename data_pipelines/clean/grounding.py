"""Rules for phrases and boxes (paper, A.3): spans within their text, boxes within their picture, no nested spans.

    recipe = (rule(spans_in_text), rule(open_pictures), rule(boxes_in_picture, overhang=0.05),
              rule(flat_spans, choose="most_boxes"))

Every region and box that a rule changes or removes is a cause, and is counted.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from data_pipelines.clean.rule import Dropped, Rewritten, Verdict
from data_pipelines.pair import Box, RawPair, Region
from qwenvl_jax.data.tags import is_finite

SMALLEST_PX = 1.0  # a thinner box is degenerate


def spans_in_text(pair: RawPair) -> Verdict:
    """Trims spaces from the spans of regions, and removes regions whose span is not in the text.

    Offsets count Unicode characters. The phrase of a region becomes the characters of its span.
    """
    causes: list[str] = []
    regions: list[Region] = []
    text = pair.texts[0] if pair.texts else ""
    for region in pair.regions:
        if region.start < 0 and region.end < 0:  # its phrase does not come from the text
            regions.append(region)
            continue
        if not 0 <= region.start < region.end <= len(text):
            causes.append("span outside the text")
            continue
        phrase = text[region.start : region.end]
        start = region.start + len(phrase) - len(phrase.lstrip())
        end = region.end - len(phrase) + len(phrase.rstrip())
        if start >= end:
            causes.append("span without a word")
            continue
        if (start, end) != (region.start, region.end):
            causes.append("spaces trimmed")
        regions.append(dataclasses.replace(region, phrase=text[start:end], start=start, end=end))
    return _with_regions(pair, regions, causes)


def boxes_in_picture(pair: RawPair, overhang: float = 0.05) -> Verdict:
    """Clips boxes that leave the picture by at most `overhang`; removes boxes farther outside, and degenerate ones.

    A region whose boxes are all removed is removed. The picture's size must be known.

    Args:
      pair: boxes in pixels.
      overhang: of the picture's width or height; annotators draw across the edge.
    """
    if not pair.regions:
        return pair
    if not pair.pictures or not pair.pictures[0].width or not pair.pictures[0].height:
        return Dropped("picture without a size")
    width, height = pair.pictures[0].width, pair.pictures[0].height
    causes: list[str] = []
    regions: list[Region] = []
    for region in pair.regions:
        boxes: list[Box] = []
        for box in region.boxes:
            clipped, cause = _clipped(box, width, height, overhang)
            if cause:
                causes.append(cause)
            if clipped is not None:
                boxes.append(clipped)
        if boxes:
            regions.append(region if tuple(boxes) == region.boxes else dataclasses.replace(region, boxes=tuple(boxes)))
    return _with_regions(pair, regions, causes)


def _clipped(box: Box, width: float, height: float, overhang: float) -> tuple[Box | None, str]:
    """The box within the picture, or None if it is removed; and the cause if it was changed or removed."""
    if not all(map(is_finite, box)):
        return None, "box that is not finite"
    x1, y1, x2, y2 = box
    if x2 - x1 < SMALLEST_PX or y2 - y1 < SMALLEST_PX:
        return None, "degenerate box"
    if min(x1 / width, y1 / height, 1 - x2 / width, 1 - y2 / height) < -overhang:
        return None, "box outside its picture"
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] - clipped[0] < SMALLEST_PX or clipped[3] - clipped[1] < SMALLEST_PX:
        return None, "degenerate box"
    return clipped, "" if clipped == box else "box clipped"


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of a text with a number of boxes; `score` decides between choices with equally many boxes."""

    start: int
    end: int
    boxes: int
    score: float = 0.0


def most_boxes(spans: Sequence[Span]) -> list[int]:
    """The indices of spans that do not overlap and have the most boxes in all, in the order of the text.

    Weighted interval scheduling by dynamic programming, so the choice is a maximum; of several, one with the highest
    sum of scores. O(n log n).
    """
    order = sorted(range(len(spans)), key=lambda index: (spans[index].end, spans[index].start))
    ends = [spans[index].end for index in order]
    best: list[tuple[int, float]] = [(0, 0.0)]  # of the first n spans: boxes and score
    before: list[int] = []  # how many spans end before the n-th begins
    for position, index in enumerate(order):
        span = spans[index]
        before.append(bisect.bisect_right(ends, span.start, 0, position))
        boxes, score = best[before[position]]
        best.append(max(best[position], (boxes + span.boxes, score + span.score)))
    chosen: list[int] = []
    position = len(order)
    while position:
        if best[position] == best[position - 1]:
            position -= 1
            continue
        chosen.append(order[position - 1])
        position = before[position - 1]
    return chosen[::-1]


def greedy(spans: Sequence[Span]) -> list[int]:
    """As `most_boxes`, but takes the span with the most boxes, then the shorter one, then the earlier one, first.

    Not always a maximum: a span with two boxes may cover three spans with one box each. Of random captions with eight
    spans 4 % lose boxes, 0.8 % of all; with sixteen, 11 % and 1.6 % (`benchmarks/grounding_spans.py`).
    """

    def rank(index: int) -> tuple[int, int, int]:
        span = spans[index]
        return -span.boxes, span.end - span.start, span.start

    chosen: list[int] = []
    for index in sorted(range(len(spans)), key=rank):
        span = spans[index]
        if all(span.end <= spans[other].start or spans[other].end <= span.start for other in chosen):
            chosen.append(index)
    return sorted(chosen, key=lambda index: spans[index].start)


CHOICES: Mapping[str, Callable[[Sequence[Span]], list[int]]] = {"most_boxes": most_boxes, "greedy": greedy}


def flat_spans(pair: RawPair, choose: str = "most_boxes") -> Verdict:
    """Leaves such spans in the caption that none overlaps another and the caption has the most boxes.

    1. Regions with equal spans become one, with the boxes of all.
    2. A box that several spans have stays with the shortest, of equally short ones with the first: a noun phrase
       leaves more room for others than the referring expression around it.
    3. `choose` picks the spans ("most_boxes" or "greedy").

    A region that is not chosen or has lost a box to another is kept without a span (-1) behind the others, with all
    its boxes, so that it is still a phrase with a box for `ref_grounding` and `grounded_caption`.
    """
    merged, causes = _merged(pair.regions)
    boxes = _boxes_once(merged)
    causes += ["equal box under a longer span"] * sum(
        len(region.boxes) - len(boxes[span]) for span, region in merged.items()
    )
    labelled = [span for span in merged if boxes[span]]
    spans = [Span(*span, len(boxes[span]), merged[span].score * len(boxes[span])) for span in labelled]
    chosen = {labelled[index] for index in CHOICES[choose](spans)}
    causes += ["nested span"] * (len(labelled) - len(chosen))
    in_caption: list[Region] = []
    others = [region for region in pair.regions if region.start < 0]
    for span in sorted(merged):
        if span in chosen:
            in_caption.append(dataclasses.replace(merged[span], boxes=boxes[span]))
        if span not in chosen or boxes[span] != merged[span].boxes:
            others.append(dataclasses.replace(merged[span], start=-1, end=-1))
    return _with_regions(pair, in_caption + others, causes)


def _merged(regions: Sequence[Region]) -> tuple[dict[tuple[int, int], Region], list[str]]:
    """The regions with a span, one per span, each with its different boxes; and the causes."""
    merged: dict[tuple[int, int], Region] = {}
    causes: list[str] = []
    for region in regions:
        if region.start < 0:
            continue
        span = region.start, region.end
        before = merged.get(span)
        boxes = tuple(dict.fromkeys((*(before.boxes if before else ()), *region.boxes)))
        if before is not None:
            causes.append("equal spans joined")
        score = max(region.score, before.score) if before else region.score
        merged[span] = dataclasses.replace(region, boxes=boxes, score=score)
    return merged, causes


def _boxes_once(merged: Mapping[tuple[int, int], Region]) -> dict[tuple[int, int], tuple[Box, ...]]:
    """The boxes of every span without those that a shorter span has."""
    owner: dict[Box, tuple[int, int]] = {}
    for span in sorted(merged, key=lambda span: (span[1] - span[0], span[0])):
        for box in merged[span].boxes:
            owner.setdefault(box, span)
    return {span: tuple(box for box in region.boxes if owner[box] == span) for span, region in merged.items()}


def _with_regions(pair: RawPair, regions: Sequence[Region], causes: Sequence[str]) -> Verdict:
    """The pair with other regions; the pair itself if they are the same."""
    if not pair.regions or tuple(regions) == pair.regions:
        return pair
    if not regions:
        return Dropped("no region is left")
    return Rewritten(dataclasses.replace(pair, regions=tuple(regions)), tuple(causes))
