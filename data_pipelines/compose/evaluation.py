"""Evaluation records: a picture, several pictures or no picture, with all questions of a benchmark about them.

A pair with questions becomes these questions; a pair with regions a question per phrase, whose answer is the box; a
pair with texts one question whose answers are all reference captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

from data_pipelines.compose.record import points_in, size_of
from data_pipelines.pair import Question, RawPair, Region
from qwenvl_jax.data.evaluation_content import EVALUATION, EvaluationContent
from qwenvl_jax.data.languages import guess_language
from qwenvl_jax.data.schema import Record, check_record


def evaluation(pair: RawPair) -> Record | None:
    """The record of a pair after the rule `evaluation_pictures`. No text is rewritten and no question is left out.

    Ids are the publisher's. If the corpus has none, the id is that of the pair with the number of the question; an id
    that repeats within the pair gets a number too, because ids must be unique.
    """
    size = {}
    if pair.questions:
        questions = [_question(question) for question in pair.questions]
    elif pair.regions:
        size = size_of(pair)
        questions = [_phrase(region, size) for region in pair.regions]
    elif pair.texts:
        category = {"category": pair.category} if pair.category else {}
        questions = [{"id": pair.number or pair.id, "answers": list(pair.texts), **category}]
    else:
        return None
    for question, identifier in zip(questions, _ids(pair, questions), strict=True):
        question["id"] = identifier
    content = cast(EvaluationContent, {"questions": questions, **size})
    language = pair.language or guess_language(" ".join(_words(pair)))
    images = tuple(picture.encoded for picture in pair.pictures)
    return check_record(Record(pair.id, EVALUATION, pair.source, language, pair.license, images, content))


def _question(question: Question) -> dict[str, Any]:
    content: dict[str, Any] = {"id": question.id, "text": question.text}
    if question.answers:
        content["answers"] = [answer.text for answer in question.answers]
    if question.choices:
        content["options"] = list(question.choices)
    if question.right >= 0:
        content["right"] = question.right
    for key in ("hint", "category", "group"):
        if getattr(question, key):
            content[key] = getattr(question, key)
    return content


def _phrase(region: Region, size: Mapping[str, float]) -> dict[str, Any]:
    """A phrase with its box; without one in a hidden test set."""
    content: dict[str, Any] = {"id": region.id, "text": region.phrase}
    if region.boxes:
        content["box"] = points_in(region.boxes[0], size, "the box")
    return content


def _ids(pair: RawPair, questions: list[dict[str, Any]]) -> Iterator[str]:
    """The ids of the questions of a pair, each of which is unique."""
    stated = {question["id"] for question in questions}
    given: set[str] = set()
    for number, question in enumerate(questions):
        identifier = question["id"]
        if not identifier.strip():
            identifier = f"{pair.id}#{number}" if len(questions) > 1 else pair.id
        if identifier in given:
            others = (f"{identifier}#{repeat}" for repeat in itertools.count(2))
            identifier = next(each for each in others if each not in given and each not in stated)
        given.add(identifier)
        yield identifier


def _words(pair: RawPair) -> Iterator[str]:
    yield from pair.texts
    for question in pair.questions:
        yield question.text
    for region in pair.regions:
        yield region.phrase
