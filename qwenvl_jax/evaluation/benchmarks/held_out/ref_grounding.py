"""Referring expressions: the box of a phrase (released evaluate_grounding.py; there 10 to 28 tokens)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks import truth
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark, Question, without_tags
from qwenvl_jax.evaluation.metrics.grounding import IOU_THRESHOLD, intersection_over_union, parse_first_box
from qwenvl_jax.evaluation.metrics.metric import Scores, mean_scores


def questions(record: Record, asking: Asking) -> list[Question]:
    """One question per record; the prompt ends with `<box>`. Raises UserError for a box that no answer can match."""
    content: Mapping[str, Any] = record.content
    width, height = truth.size(content)
    box = truth.box(content["box"], width, height)
    phrase = truth.text(content["phrase"], "the phrase")
    about = {"phrase": phrase, "box": box, "width": width, "height": height}
    return [Question(record.id, tuple(prompt_pieces(record, asking.style)), record.images, about)]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The first box, in pixels, and its IoU with the true one."""
    text = without_tags(text)
    box = parse_first_box(text, about["width"], about["height"])
    iou = intersection_over_union(box, about["box"])
    return {"prediction": text, "predicted_box": [round(value, 2) for value in box], **about, "iou": iou}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """`referring_acc`: share of boxes with IoU of at least 0.5; and the mean IoU."""
    ious = [row["iou"] for row in rows]
    return {
        "referring_acc": mean_scores([float(iou >= IOU_THRESHOLD) for iou in ious]),
        "mean_iou": mean_scores(ious),
    }


# An empty answer has no box, so its overlap is zero.
BENCHMARK = Benchmark(
    "ref_grounding",
    "Referring boxes",
    questions,
    read,
    lambda about: read("", about),
    score,
    "ref_grounding",
    max_new_tokens=28,
    min_new_tokens=10,
)
