"""Referring expressions: the box of a phrase (released evaluate_grounding.py; there max_new 28, min_new 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.metrics.grounding import intersection_over_union, parse_first_box, referring_accuracy
from qwenvl_jax.evaluation.tasks import truth
from qwenvl_jax.evaluation.tasks.task import Question, Task, mean, without_tags


def questions(record: Record, style: str) -> list[Question]:
    """One question per record; the prompt ends with `<box>`. Raises UserError for a box that no answer can match."""
    content: Mapping[str, Any] = record.content
    width, height = truth.size(content)
    box = truth.box(content["box"], width, height)
    phrase = truth.text(content["phrase"], "the phrase")
    about = {"phrase": phrase, "box": box, "width": width, "height": height}
    return [Question(record.id, tuple(prompt_pieces(record, style)), record.images, about)]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The first box, in pixels, and its IoU with the true one."""
    text = without_tags(text)
    box = parse_first_box(text, about["width"], about["height"])
    iou = intersection_over_union(box, about["box"])
    return {"prediction": text, "predicted_box": [round(value, 2) for value in box], **about, "iou": iou}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`referring_acc`: share of boxes with IoU of at least 0.5; and the mean IoU."""
    ious = [row["iou"] for row in rows]
    return {"referring_acc": referring_accuracy(ious), "mean_iou": mean(ious)}


# An empty answer has no box, so its overlap is zero.
TASK = Task("ref_grounding", questions, read, lambda about: read("", about), score)
