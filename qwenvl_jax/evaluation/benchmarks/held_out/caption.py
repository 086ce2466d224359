"""Captioning, scored by CIDEr (released evaluate_caption.py; there 8 to 30 tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks import truth
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark, Question, without_tags
from qwenvl_jax.evaluation.metrics.cider import cider
from qwenvl_jax.evaluation.metrics.metric import Scores, mean_scores
from qwenvl_jax.runtime.errors import UserError


def questions(record: Record, asking: Asking) -> list[Question]:
    """One question per record. If its content has `captions`, they are the references instead of `caption`.

    Raises:
      UserError: if there is no caption to compare with, or `truth.texts` does not know the form of the captions.
    """
    content = record.content
    references = truth.texts(content.get("captions"), "caption") or truth.texts(content.get("caption"), "caption")
    if not any(references):
        raise UserError("it has no caption to compare with; use records that have captions")
    return [Question(record.id, tuple(prompt_pieces(record, asking.style)), record.images, {"references": references})]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The caption without tags and surrounding space."""
    return {"prediction": without_tags(text).strip(), "references": about["references"]}


def score(rows: Sequence[dict[str, Any]], tokenisation: str = "ptb") -> dict[str, Scores]:
    """`caption_cider_ptb`, where 1.0 is printed as 100 in papers; `caption_cider` with the simple tokenisation."""
    key = "caption_cider" if tokenisation == "simple" else f"caption_cider_{tokenisation}"
    if not rows:
        return {key: mean_scores([])}
    predictions = [row["prediction"] for row in rows]
    references = [row["references"] for row in rows]
    return {key: mean_scores(cider(predictions, references, tokenisation=tokenisation)[1])}


# An empty caption shares no word with any reference, so its CIDEr is zero.
BENCHMARK = Benchmark(
    "caption",
    "Captions",
    questions,
    read,
    lambda about: read("", about),
    score,
    "caption",
    max_new_tokens=30,
    min_new_tokens=8,
)
