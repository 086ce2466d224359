"""The content of evaluation records: the questions of a benchmark about one picture, several pictures, or no picture.

Training refuses such records. `evaluation.benchmarks` asks their questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from qwenvl_jax.data.annotations import contents_of
from qwenvl_jax.data.content_checks import kind_of, list_at, objects_at, text_at
from qwenvl_jax.data.tags import box_to_text
from qwenvl_jax.runtime.errors import UserError

EVALUATION = "evaluation"  # the task of the records of published benchmarks


class EvaluationQuestion(TypedDict):
    """One question. A key that the benchmark does not need is absent.

    Attributes:
      id: as the publisher numbers it, unique in the split: the `question_id` of VQAv2, the id of the picture for
        captions.
      text: the question, or the phrase to find; absent for captions.
      answers: of all annotators; the reference captions; the text of the right option. Absent in hidden test sets.
      options: the texts of the options A, B, ..
      right: index of the right option; absent in hidden test sets.
      hint: the context of the question (ScienceQA, MMBench), or a description of the picture (TouchStone).
      box: `[x1, y1, x2, y2]` in pixels of the picture as stored.
      category: the subject, the subtask, or the type of the question.
      group: the same for questions that count together: the rotations of a question of MMBench, the two questions
        about a picture of MME.
    """

    id: str
    text: NotRequired[str]
    answers: NotRequired[Sequence[str]]
    options: NotRequired[Sequence[str]]
    right: NotRequired[int]
    hint: NotRequired[str]
    box: NotRequired[Sequence[float]]
    category: NotRequired[str]
    group: NotRequired[str]


class EvaluationContent(TypedDict):
    """The questions of a record. If one has a box, `width` and `height` are the size of the one picture in pixels."""

    questions: Sequence[EvaluationQuestion]
    width: NotRequired[float]
    height: NotRequired[float]


_TEXTS = ("text", "hint", "category", "group")
_LISTS = ("answers", "options")


def check_evaluation(content: Mapping[str, Any]) -> None:
    """Raises UserError if a question is malformed, two have the same id, or a box is not in its picture."""
    seen: set[str] = set()
    if ("width" in content) != ("height" in content):
        raise UserError("it states only one of 'width' and 'height'; state both or neither")
    for question in objects_at(content, "questions"):
        identifier = text_at(question, "id")
        if identifier in seen:
            raise UserError(f"two questions have the id {identifier!r}; give each an id of its own")
        seen.add(identifier)
        try:
            _check_question(question, content)
        except UserError as error:
            raise UserError(f"question {identifier!r}: {error}") from None


def _check_question(question: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    for key in _TEXTS:
        if key in question:
            text_at(question, key, blank=True)
    for key in _LISTS:
        if key not in question:
            continue
        texts = list_at(question, key)
        if not texts:
            raise UserError(f"{key!r} is empty; leave the key out if there are no {key}")
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{key!r} must list texts, not {kind_of(text)}")
    if "right" in question:
        right = question["right"]
        count = len(question.get("options", ()))
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < count:
            raise UserError(
                f"'right' must be the index of one of its {count} options, the first being 0, not {right!r}"
            )
    if "box" in question:
        if "width" not in content:
            raise UserError("it has a box, but the record does not state 'width' and 'height'; add them")
        box_to_text(list_at(question, "box"), content["width"], content["height"])


def single_contents(task: str, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The content of every sample of a checked record of any task; of a benchmark, one for every question."""
    if task != EVALUATION:
        return contents_of(content)
    return [{**content, "questions": [question]} for question in content["questions"]]


def evaluation_words(content: EvaluationContent) -> str:
    """The questions with their options and answers, one a line, as a page shows them."""
    return "\n".join(_words(question) for question in content["questions"])


def _words(question: EvaluationQuestion) -> str:
    parts = [question.get("text", "")]
    options = question.get("options", ())
    if options:
        parts.append(f"[{' / '.join(options)}]")
    parts.append(" / ".join(question.get("answers", ())))
    return " ".join(filter(None, parts))


def evaluation_boxes(content: EvaluationContent) -> list[Sequence[float]]:
    """The boxes of all questions that have one."""
    return [question["box"] for question in content["questions"] if "box" in question]
