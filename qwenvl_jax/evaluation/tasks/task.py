"""The parts of an evaluated task: questions made from records, reading an answer, and scores over all answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
      id: of the record; with the number of the turn if a record asks several questions.
      pieces: the prompt.
      images: encoded images, which the pieces refer to by index.
      about: JSON values that are needed to read and score the answer, such as the truth and the image's size.
    """

    id: str
    pieces: tuple[Piece, ...]
    images: tuple[bytes, ...]
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of benchmark.

    Attributes:
      name: as in the evaluation config; also the `Record.task` of its records.
      questions: (record, prompt style) -> questions. Raises UserError if a record cannot be scored.
      read: (text of the answer, with special tokens written out, `about`) -> JSON values of one row of predictions.
      unanswered: `about` -> the row of a question that could not be asked; it scores nothing.
      score: rows -> figures by name, the figure of `SCORE_KEYS` first.
      stops: the special tokens that end an answer, written out.
    """

    name: str
    questions: Callable[[Record, str], list[Question]]
    read: Callable[[str, dict[str, Any]], dict[str, Any]]
    unanswered: Callable[[dict[str, Any]], dict[str, Any]]
    score: Callable[..., dict[str, float]]
    stops: tuple[str, ...] = (tags.ENDOFTEXT,)


def without_tags(text: str) -> str:
    """The text without special tokens (the released scripts' skip_special_tokens), in its normal form."""
    for tag in (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS):
        text = text.replace(tag, "")
    return tags.normal_form(text)  # after the tags are gone: an accent may have followed one


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0.0 if there are no values."""
    return sum(values) / len(values) if values else 0.0
