"""What every evaluated task gives: questions made from records, a reading of answers, a score over all of them."""

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
      id: of the record, with the number of the turn where a record asks several times.
      pieces: the prompt.
      images: encoded images that the pieces index.
      about: JSON values that reading and scoring the answer need: the truth, the image's size.
    """

    id: str
    pieces: tuple[Piece, ...]
    images: tuple[bytes, ...]
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark kind.

    Attributes:
      name: as in the evaluation config, which is also the `Record.task` it asks.
      questions: record, prompt style -> questions. Raises UserError for a record that it cannot score.
      read: the answer's text with special tokens written out, `about` -> JSON values of one row of predictions.
      unanswered: `about` -> the row of a question that could not be asked, which scores nothing.
      score: rows -> figures by name, the one of `SCORE_KEYS` first.
      stops: written forms of the special tokens that end an answer.
    """

    name: str
    questions: Callable[[Record, str], list[Question]]
    read: Callable[[str, dict[str, Any]], dict[str, Any]]
    unanswered: Callable[[dict[str, Any]], dict[str, Any]]
    score: Callable[..., dict[str, float]]
    stops: tuple[str, ...] = (tags.ENDOFTEXT,)


def without_tags(text: str) -> str:
    """The text with every special token dropped (the released scripts' skip_special_tokens)."""
    for tag in (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS):
        text = text.replace(tag, "")
    return text


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, 0.0 of nothing."""
    return sum(values) / len(values) if values else 0.0
