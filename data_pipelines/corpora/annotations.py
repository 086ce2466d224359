"""Shared by the annotated corpora: questions, boxes, and rows of which only a part is bad."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from data_pipelines.corpora.rows import BadRow, encodable, identifier_at, text_at
from data_pipelines.pair import Answer, Box, FailedRow, Question, RawPair, Row
from qwenvl_jax.data.tags import is_finite
from qwenvl_jax.runtime.errors import one_line

# VQAv2, OK-VQA and VizWiz: how sure an annotator was.
CONFIDENCES = {"yes": 1.0, "maybe": 0.5, "no": 0.0}

T = TypeVar("T")
A = TypeVar("A")


def read_parts(
    values: Iterable[T], read: Callable[[T], A], name: Callable[[T], str] | str = ""
) -> tuple[tuple[A, ...], list[FailedRow]]:
    """The annotations of one picture and the failures of those that cannot be used.

    A failed annotation becomes a row of its own before the row of the picture, so that it costs only itself and is
    counted by its reason.

    Args:
      values: the annotations as the corpus has them.
      read: makes an annotation of one, or raises BadRow.
      name: says which one it is, in the detail of a failure.
    """
    annotations: list[A] = []
    failures: list[FailedRow] = []
    for value in values:
        try:
            annotations.append(read(value))
        except BadRow as error:
            which = name if isinstance(name, str) else name(value)
            failures.append(FailedRow(error.failed.reason, ": ".join(filter(None, (which, error.failed.detail)))))
    return tuple(annotations), failures


def rows_of(pair: RawPair, failures: Iterable[FailedRow], kind: str) -> Iterator[Row]:
    """The failed annotations of a picture, and the pair if `kind` of its annotations ("questions", ..) are left."""
    for failure in failures:
        yield dataclasses.replace(failure, detail=one_line(f"{pair.id}: {failure.detail}"))
    if getattr(pair, kind):
        yield pair


def phrase_at(row: Mapping[str, Any], key: str) -> str:
    """The text at a key without white space around it. Raises BadRow if nothing is left."""
    return _stripped(text_at(row, key), key)


def category_at(row: Mapping[str, Any], key: str) -> str:
    """The text at a key, by which results are only grouped: "" if there is no text."""
    value = row.get(key)
    return encodable(value) if isinstance(value, str) else ""


def answer_text(value: object, key: str = "answer") -> str:
    """An answer: a text, or a number or truth value as JSON writes it. Raises BadRow if there is none.

    Annotators wrote texts; some editions of ChartQA and DVQA have numbers.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if is_finite(value):
        return str(value)
    return _stripped(text_at({key: value}, key), key)


def question(text: str, answers: Iterable[Answer], *, hidden: bool = False, **more: Any) -> Question:
    """A question that has an answer.

    Args:
      text: the question.
      answers: of all annotators.
      hidden: whether the publisher keeps the answers of the split, so that the question has none.
      **more: further fields of `Question`.

    Raises:
      BadRow: if no annotator gave an answer, and answers are not hidden.
    """
    stated = tuple(answers)
    if not hidden and not any(answer.text for answer in stated):
        raise BadRow("question without an answer", text)
    return Question(text, stated, **more)


def id_at(row: Mapping[str, Any], *keys: str) -> str:
    """The text or whole number at the first of some keys that has one, as a text; "" if none has."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return identifier_at(row, key)
    return ""


def text_answer(value: object) -> Answer:
    """An answer without a confidence."""
    return Answer(answer_text(value))


def answers_of(values: Sequence[object], read: Callable[[Any], Answer] = text_answer) -> tuple[Answer, ...]:
    """The answers of a question; annotators who left theirs empty have an answer without a text."""
    stated = [value.get("answer") if isinstance(value, dict) else value for value in values]
    blank = [isinstance(text, str) and not text.strip() for text in stated]
    return tuple(Answer("") if empty else read(value) for value, empty in zip(values, blank, strict=True))


def confident_answer(value: object) -> Answer:
    """An answer as VQAv2 writes it: `{"answer": "net", "answer_confidence": "maybe"}`."""
    if not isinstance(value, dict):
        raise BadRow("wrong type", "an answer is not an object")
    confidence = value.get("answer_confidence", "yes")
    if not isinstance(confidence, str) or confidence not in CONFIDENCES:
        raise BadRow("unknown confidence", repr(confidence))
    return Answer(answer_text(value.get("answer")), CONFIDENCES[confidence])


def numbers_of(value: object, count: int, name: str) -> tuple[float, ...]:
    """A list of `count` finite numbers. Raises BadRow for anything else."""
    if not isinstance(value, list | tuple) or len(value) != count or not all(map(is_finite, value)):
        raise BadRow("malformed box", f"{name} is not a list of {count} numbers")
    return tuple(map(float, value))


def corner_and_size(x: object, y: object, width: object, height: object) -> Box:
    """The box of a top left corner and a size in pixels, as COCO and Visual Genome write boxes."""
    left, top, wide, high = numbers_of([x, y, width, height], 4, "x, y, width, height")
    return left, top, left + wide, top + high


def _stripped(text: str, key: str) -> str:
    if not text.strip():
        raise BadRow("missing value", key)
    return text.strip()
