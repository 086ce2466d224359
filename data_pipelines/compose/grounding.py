"""Records of phrases and boxes (paper, A.3 and Box B.1), three tasks from the same regions of a picture.

    grounding         the caption with the boxes of its phrases, of regions whose phrase is a span of the caption
    ref_grounding     from the phrase to its box
    grounded_caption  the reverse: from the box to its phrase

The last two take regions with one box, because a phrase that several boxes share names none of them alone. They need
no span, so they also have the phrases that `flat_spans` took out of the caption.
"""

from __future__ import annotations

from typing import Any

from data_pipelines.compose.record import points_in, record_of, size_of
from data_pipelines.pair import RawPair
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime.errors import UserError


def grounding(pair: RawPair) -> Record | None:
    """The caption, cut into segments with and without boxes.

    Raises:
      UserError: if spans overlap or are not those of their phrases; `clean.grounding` has the rules that prevent it.
    """
    regions = sorted((region for region in pair.regions if region.start >= 0), key=lambda region: region.start)
    if not regions:
        return None
    size = size_of(pair)
    text = pair.texts[0] if pair.texts else ""
    segments: list[dict[str, Any]] = []
    position = 0
    for region in regions:
        if region.start < position or text[region.start : region.end] != region.phrase:
            raise UserError(
                f"pair {pair.id!r} of {pair.source!r} has spans that overlap or do not fit its text; add the rules "
                "spans_in_text and flat_spans to the end of its recipe"
            )
        if region.start > position:
            segments.append({"text": text[position : region.start], "boxes": []})
        boxes = [points_in(box, size, "the box") for box in region.boxes]
        segments.append({"text": region.phrase, "boxes": boxes})
        position = region.end
    if position < len(text):
        segments.append({"text": text[position:], "boxes": []})
    return record_of(pair, "grounding", [{"segments": segments}], size)


def ref_grounding(pair: RawPair) -> Record | None:
    """Every phrase with its box."""
    samples = _phrases_with_a_box(pair)
    contents = [{"phrase": phrase, "box": box} for phrase, box in samples]
    return record_of(pair, "ref_grounding", contents, size_of(pair) if samples else None)


def grounded_caption(pair: RawPair) -> Record | None:
    """Every box with its phrase as the description."""
    samples = _phrases_with_a_box(pair)
    contents = [{"box": box, "description": phrase} for phrase, box in samples]
    return record_of(pair, "grounded_caption", contents, size_of(pair) if samples else None)


def _phrases_with_a_box(pair: RawPair) -> list[tuple[str, list[float]]]:
    """The phrases that have one box, in the order of the regions; a repeated one only once."""
    regions = [region for region in pair.regions if len(region.boxes) == 1]
    if not regions:
        return []
    size = size_of(pair)
    samples = dict.fromkeys((region.phrase, region.boxes[0]) for region in regions)
    return [(phrase, points_in(box, size, "the box")) for phrase, box in samples]
