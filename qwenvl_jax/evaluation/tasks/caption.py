"""Captioning, scored by CIDEr (released evaluate_caption.py; there max_new 30, min_new 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.metrics.cider import cider
from qwenvl_jax.evaluation.tasks.task import Question, Task, without_tags


def questions(record: Record, style: str) -> list[Question]:
    """One question per record; `captions` in its content, where present, are all references."""
    references = record.content.get("captions") or [record.content["caption"]]
    return [Question(record.id, tuple(prompt_pieces(record, style)), record.images, {"references": references})]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The caption without tags and surrounding space."""
    return {"prediction": without_tags(text).strip(), "references": about["references"]}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`caption_cider`, 1.0 being what papers print as 100."""
    if not rows:
        return {"caption_cider": 0.0}
    value, _ = cider([row["prediction"] for row in rows], [row["references"] for row in rows])
    return {"caption_cider": value}


TASK = Task("caption", questions, read, score)
