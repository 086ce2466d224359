"""Reading text with its quadrilaterals, scored by the character accuracy of the text in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks import truth
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark, Question, without_tags
from qwenvl_jax.evaluation.metrics.metric import Scores
from qwenvl_jax.evaluation.metrics.ocr import character_accuracy
from qwenvl_jax.runtime.errors import UserError


def questions(record: Record, asking: Asking) -> list[Question]:
    """One question per record. Raises UserError if the lines of a record are malformed."""
    content: Mapping[str, Any] = record.content
    lines = content["lines"]
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise UserError("its lines must be a list of objects with text and quad")
    width, height = truth.size(content)
    texts = [truth.text(line.get("text"), "a line") for line in lines]
    about = {"lines": texts, "width": width, "height": height}
    return [Question(record.id, tuple(prompt_pieces(record, asking.style)), record.images, about)]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The lines in the order in which they are written. An answer without any `<ref>` counts as one line."""
    text = tags.normal_form(text)
    lines = tags.parse_refs(text) or [without_tags(text)]
    accuracy = character_accuracy([(lines, about["lines"])])
    row = {"prediction": [line.strip() for line in lines], "text": text, **about}
    return {**row, "edits": accuracy.edits, "characters": accuracy.characters}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """`ocr_char_acc`: 1 - edits / characters over the corpus, not below zero."""
    total = character_accuracy((row["prediction"], row["lines"]) for row in rows)
    each = [1 - row["edits"] / max(1, row["characters"]) for row in rows]
    weights = tuple(row["characters"] / max(1, total.characters) for row in rows)
    # A text without characters, and a figure that would be below zero, are no part of a weighted mean.
    is_mean = total.edits <= total.characters and all(row["characters"] or not row["edits"] for row in rows)
    return {"ocr_char_acc": Scores(total.accuracy, tuple(each), weights if is_mean else None)}


# An empty text lacks every character.
BENCHMARK = Benchmark(
    "ocr", "Reading", questions, read, lambda about: read("", about), score, "ocr", max_new_tokens=512
)
