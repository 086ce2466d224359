"""Reading text with its places, scored by character accuracy of the text in reading order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.metrics.ocr import character_accuracy
from qwenvl_jax.evaluation.tasks.task import Question, Task, without_tags

# What stands in <ref>; an answer cut off by its length may lack the closing tag.
_LINE = re.compile(r"<ref>(.*?)(?:</ref>|<quad>|<ref>|$)", re.DOTALL)


def questions(record: Record, style: str) -> list[Question]:
    """One question per record."""
    lines = [line["text"] for line in record.content["lines"]]
    about = {"lines": lines, "width": record.content["width"], "height": record.content["height"]}
    return [Question(record.id, tuple(prompt_pieces(record, style)), record.images, about)]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The lines in the order written. An answer without any `<ref>` counts as one line."""
    lines = _LINE.findall(text) or [without_tags(text)]
    found = character_accuracy([(lines, about["lines"])])
    row = {"prediction": [line.strip() for line in lines], "text": text, **about}
    return {**row, "edits": found.edits, "characters": found.characters}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`ocr_char_acc`: 1 - edits / characters over the corpus, not below zero."""
    found = character_accuracy((row["prediction"], row["lines"]) for row in rows)
    return {"ocr_char_acc": found.accuracy}


TASK = Task("ocr", questions, read, score)
