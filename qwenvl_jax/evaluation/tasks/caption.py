"""Captioning, scored by CIDEr (released evaluate_caption.py; there max_new 30, min_new 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.metrics.cider import cider
from qwenvl_jax.evaluation.tasks import truth
from qwenvl_jax.evaluation.tasks.task import Question, Task, without_tags
from qwenvl_jax.runtime.errors import UserError


def questions(record: Record, style: str) -> list[Question]:
    """One question per record; `captions` in its content, where present, are all references.

    Raises:
      UserError: if there is no caption to compare with, or captions in a form that `truth.texts` does not know.
    """
    content = record.content
    references = truth.texts(content.get("captions"), "caption") or truth.texts(content.get("caption"), "caption")
    if not any(references):
        raise UserError("it has no caption to compare with; a set without captions cannot be scored")
    return [Question(record.id, tuple(prompt_pieces(record, style)), record.images, {"references": references})]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The caption without tags and surrounding space."""
    return {"prediction": tags.normal_form(without_tags(text)).strip(), "references": about["references"]}


def score(rows: Sequence[dict[str, Any]], tokenisation: str = "simple") -> dict[str, float]:
    """`caption_cider`, 1.0 being what papers print as 100; `caption_cider_ptb` by the official tokeniser."""
    key = "caption_cider" if tokenisation == "simple" else f"caption_cider_{tokenisation}"
    if not rows:
        return {key: 0.0}
    predictions, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
    return {key: cider(predictions, references, tokenisation=tokenisation)[0]}


# The empty caption shares no word with any reference, so CIDEr gives it nothing.
TASK = Task("caption", questions, read, lambda about: read("", about), score)
