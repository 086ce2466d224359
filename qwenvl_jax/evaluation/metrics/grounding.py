"""Referring-expression accuracy: the first predicted box against the true one.

Boxes are `[x1, y1, x2, y2]` in any common unit. Source: released evaluate_grounding.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_jax.data import tags
from qwenvl_jax.evaluation.metrics.metric import Truth
from qwenvl_jax.runtime.errors import UserError

# The released script divides coordinates by 999, although training writes value / size * 1000 rounded down.
COORDINATE_SCALE = 999
IOU_THRESHOLD = 0.5


def parse_first_box(text: str, width: float, height: float) -> tuple[float, ...]:
    """The first `(x1,y1),(x2,y2)` of `text` in pixels of a `width` x `height` image.

    Returns:
      The box, or (0, 0, 0, 0), which scores as wrong, if the text contains no box that can be parsed.
    """
    return tags.to_pixels(tags.first_box(text), width, height, denominator=COORDINATE_SCALE)


def intersection_over_union(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes in one unit, without the +1 of inclusive pixels; 0 if either is empty or inverted."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def referring_accuracy(ious: Sequence[float], threshold: float = IOU_THRESHOLD) -> float:
    """The share of boxes whose IoU is at least `threshold`; 0.0 if there are no boxes. No sample is dropped."""
    return sum(iou >= threshold for iou in ious) / len(ious) if ious else 0.0


def box_is_right(answer: str, truth: Truth, *, denominator: float, strict: bool = False) -> float:
    """1.0 if the first box of the answer overlaps the true one by an IoU of 0.5, else 0.0.

    Args:
      answer: a text with `(x1,y1),(x2,y2)`; further boxes do not count.
      truth: its box and the size of its image.
      denominator: the coordinate of the far edge, see `COORDINATE_SCALE`.
      strict: the IoU must be greater than 0.5 (GRIT) instead of at least.

    Raises:
      UserError: if the truth lacks a box or a size.
    """
    if truth.box is None or truth.size is None:
        raise UserError("a referring expression needs the true box and the size of its image; add them")
    width, height = truth.size
    box = tags.to_pixels(tags.first_box(answer), width, height, denominator=denominator)
    overlap = intersection_over_union(box, truth.box)
    return float(overlap > IOU_THRESHOLD if strict else overlap >= IOU_THRESHOLD)
