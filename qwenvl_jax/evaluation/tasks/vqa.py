"""Questions with short answers (released evaluate_vqa.py; there max_new 10, min_new 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.metrics.vqa import exact_accuracy, vqa_score
from qwenvl_jax.evaluation.tasks.task import Question, Task, mean, without_tags


def questions(record: Record, style: str) -> list[Question]:
    """One question per record; `answers` in its content, where present, are those of all annotators."""
    content = record.content
    about = {"question": content["question"], "answers": content.get("answers") or [content["answer"]]}
    return [Question(record.id, tuple(prompt_pieces(record, style)), record.images, about)]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The answer and whether it equals one of the annotated ones; with several annotators also the VQA score."""
    prediction = without_tags(text).strip()
    row = {"prediction": prediction, **about, "exact": exact_accuracy(prediction, about["answers"])}
    if len(about["answers"]) > 1:
        row["vqa_score"] = vqa_score(prediction, about["answers"])
    return row


def score(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`vqa_acc`: share of exact answers; `vqa_score` where every question has several annotators."""
    scores = {"vqa_acc": mean([row["exact"] for row in rows])}
    if rows and all("vqa_score" in row for row in rows):
        scores["vqa_score"] = mean([row["vqa_score"] for row in rows])
    return scores


TASK = Task("vqa", questions, read, score)
