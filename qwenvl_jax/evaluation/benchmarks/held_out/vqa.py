"""Questions with short answers (released evaluate_vqa.py; there 1 to 10 tokens)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data.formats import prompt_pieces
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks import truth
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark, Question, without_tags
from qwenvl_jax.evaluation.metrics.metric import Scores, mean_scores
from qwenvl_jax.evaluation.metrics.vqa import exact_accuracy, vqa_score
from qwenvl_jax.runtime.errors import UserError


def questions(record: Record, asking: Asking) -> list[Question]:
    """One question per record. If its content has `answers`, they are those of all annotators.

    Raises:
      UserError: if there is no answer to compare with, or `truth.texts` does not know the form of the answers.
    """
    content: Mapping[str, Any] = record.content
    answers = truth.texts(content.get("answers"), "answer") or truth.texts(content.get("answer"), "answer")
    if not any(answers):
        raise UserError("it has no answer to compare with; use records that have answers")
    about = {"question": truth.text(content["question"], "the question"), "answers": answers}
    return [Question(record.id, tuple(prompt_pieces(record, asking.style)), record.images, about)]


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """The answer, whether it equals an annotated one, and the VQA score if there are several annotators."""
    prediction = without_tags(text).strip()
    row = {"prediction": prediction, **about, "exact": exact_accuracy(prediction, about["answers"])}
    if len(about["answers"]) > 1:
        row["vqa_score"] = vqa_score(prediction, about["answers"])
    return row


def unanswered(about: dict[str, Any]) -> dict[str, Any]:
    """The row of a question that could not be asked."""
    row = {"prediction": "", **about, "exact": 0.0}
    return row | {"vqa_score": 0.0} if len(about["answers"]) > 1 else row


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """`vqa_acc`: share of exact answers. `vqa_score`: over all questions, if any of them has several annotators.

    The classic evaluator compares with the *other* annotators, so a question with one annotator scores 0 there.
    """
    scores = {"vqa_acc": mean_scores([row["exact"] for row in rows])}
    if any("vqa_score" in row for row in rows):
        scores["vqa_score"] = mean_scores([row.get("vqa_score", 0.0) for row in rows])
    return scores


BENCHMARK = Benchmark(
    "vqa", "Question answers", questions, read, unanswered, score, "vqa", max_new_tokens=10, min_new_tokens=1
)
