"""VQA records: every question about a picture with the answer that its annotators were surest of (paper, A.2)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from data_pipelines.compose.record import record_of
from data_pipelines.pair import Answer, Question, RawPair
from qwenvl_jax.data.schema import Record


def vqa(pair: RawPair) -> Record | None:
    """All questions about a picture that have an answer; exact repetitions are left out."""
    contents = [_content(question) for question in dict.fromkeys(pair.questions) if _stated(question)]
    return record_of(pair, "vqa", contents)


def _stated(question: Question) -> list[Answer]:
    """The answers of a question without those that annotators left empty."""
    return [answer for answer in question.answers if answer.text]


def _content(question: Question) -> dict[str, Any]:
    answers = _stated(question)
    content: dict[str, Any] = {
        "question": question_with_choices(question.text, question.choices),
        "answer": most_confident(answers),
    }
    if len(answers) > 1:
        content["answers"] = [answer.text for answer in answers]
    return content


def most_confident(answers: Sequence[Answer]) -> str:
    """The answer with the maximum confidence, which is the sum over the annotators who gave it.

    The annotators of VQAv2 state "yes", "maybe" or "no", which count 1, 0.5 and 0. Of answers with equal sums the one
    that more annotators gave is taken, of those the one that comes first. Texts are compared as they are written.
    Without stated confidences this is the most frequent answer or, if all differ, the first.
    """
    confidences: dict[str, float] = {}
    counts: dict[str, int] = {}
    for answer in answers:
        confidences[answer.text] = confidences.get(answer.text, 0.0) + answer.confidence
        counts[answer.text] = counts.get(answer.text, 0) + 1
    return max(counts, key=lambda text: (confidences[text], counts[text]))  # of equals `max` takes the first


def question_with_choices(text: str, choices: Sequence[str]) -> str:
    r"""The question, followed by its options if it is a multiple choice: "..?\nOptions: A. fox\nB. owl".

    The options are written as in the released evaluation of ScienceQA. The answer of the record is the text of an
    option, because AI2D is scored by text.
    """
    if not choices:
        return text
    options = [f"{_letter(number)}. {choice}" for number, choice in enumerate(choices)]
    return "\n".join([text, f"Options: {options[0]}", *options[1:]])


def _letter(number: int) -> str:
    """A, B, .. Z, then AA, AB, .. as in the columns of a table."""
    letters = string.ascii_uppercase
    return letters[number] if number < len(letters) else _letter(number // 26 - 1) + letters[number % 26]
