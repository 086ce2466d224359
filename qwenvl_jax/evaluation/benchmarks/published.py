"""Makes a `Benchmark` from a form, a metric and the facts of the table.

Every question of an evaluation record is asked. A row of predictions holds the question and its truth, so that all
figures can be computed again from the rows alone.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks import truth
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED, UPSTREAM, Asking, Benchmark, Question
from qwenvl_jax.evaluation.benchmarks.form import CHAT_STOPS, Form, right_letter
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.metrics.metric import Scores, Truth
from qwenvl_jax.evaluation.metrics.registry import METRICS
from qwenvl_jax.runtime.errors import UserError

# Further figures by name: that of the questions for whose truth the function is true, alone. A mean over subjects stays
# one.
Figures = Mapping[str, Callable[[Truth], bool]]

# Scores nothing in any metric: it is no word, no number, no letter, and has no box.
_NO_ANSWER = "\0"


def published(
    name: str,
    title: str,
    form: Form,
    metric: str = "",
    *,
    corpus: str,
    split: str,
    hidden: bool = False,
    figures: Figures | None = None,
    **facts: Any,
) -> Benchmark:
    """A benchmark of the paper.

    Args:
      name: in the config.
      title: in tables.
      form: how it asks.
      metric: one of `METRICS`, whose two variants are its figures; "" if `facts` has a `score` of its own.
      corpus: of its records.
      split: of its records.
      hidden: whether only a server knows the truth.
      figures: further figures, such as the mean over one kind of question.
      **facts: further attributes of `Benchmark`.
    """
    if form.chat:
        facts.setdefault("stops", CHAT_STOPS)
    if metric:
        facts["score"] = functools.partial(_score, metric, hidden, figures)
        facts["unit"] = METRICS[metric].unit
    return Benchmark(
        name,
        title,
        questions=functools.partial(_questions, form, hidden),
        read=functools.partial(_read, form),
        unanswered=_unanswered,
        corpus=corpus,
        split=split,
        prompt=form.template.text,
        metric=metric,
        compared=form.letters is not None,
        hidden=hidden,
        **facts,
    )


def _questions(form: Form, hidden: bool, record: Record, asking: Asking) -> list[Question]:
    """The questions of an evaluation record. Raises UserError if one cannot be asked or scored."""
    content: Mapping[str, Any] = record.content
    template = Template(asking.template) if asking.template else None
    asked = []
    for number, question in enumerate(content["questions"]):
        exemplars = asking.exemplars(record, number) if asking.exemplars else ()
        pieces, images = form.pieces(question, record, exemplars, template)
        about = {"question": question.get("text", ""), "truth": _truth(form, hidden, question, content)}
        if question.get("hint") and not form.letters:
            about["hint"] = question["hint"]  # a judge reads it
        asked.append(Question(question["id"], tuple(pieces), images, about, form.options(question)))
    return asked


def _truth(form: Form, hidden: bool, question: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Truth` that the question states, as JSON values."""
    values: dict[str, Any] = {
        "answers": truth.texts(question.get("answers"), "answer"),
        "options": truth.texts(question.get("options"), "option"),
        "category": question.get("category", ""),
        "group": question.get("group", ""),
    }
    if hidden:
        values["answers"] = []
    elif form.needs == "right":
        values["answers"] = [right_letter(question)]
    elif form.needs == "box":
        width, height = truth.size(content)
        values["box"] = truth.box(question.get("box"), width, height)
    elif form.needs == "answers" and not any(values["answers"]):
        raise UserError(f"its question {question.get('id')!r} has no answer to compare with; use records with answers")
    if "width" in content:
        values["size"] = list(truth.size(content))
    return {key: value for key, value in values.items() if value}


def _read(form: Form, text: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"prediction": form.read(text), **about}


def _unanswered(about: dict[str, Any]) -> dict[str, Any]:
    return {"prediction": "", UNANSWERED: "it was not asked", **about}


def truth_of(row: Mapping[str, Any]) -> Truth:
    """The truth of a row of predictions.

    Raises:
      UserError: if the row has no truth, so that it belongs to another benchmark.
    """
    values = row.get("truth")
    if not isinstance(values, Mapping):
        raise UserError(f"the prediction {row.get('id')!r} has no truth, so it belongs to another benchmark; ask again")
    lists = {key: tuple(values[key]) for key in ("answers", "options", "box", "size") if key in values}
    texts = {key: values[key] for key in ("group", "category") if key in values}
    return Truth(**cast(dict[str, Any], lists | texts))


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer of a row as it is scored; of a question that could not be asked, one that is never right."""
    return _NO_ANSWER if row.get(UNANSWERED) else str(row.get("prediction", ""))


def _score(metric: str, hidden: bool, figures: Figures | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """The official figure and, if the released scripts differ, theirs. Hidden benchmarks have no figures."""
    if hidden or not rows:
        return {}
    answers = [answer_of(row) for row in rows]
    truths = [truth_of(row) for row in rows]
    rule = METRICS[metric]
    scores = {metric: rule.score(answers, truths)}
    if rule.upstream_exact:
        scores[f"{metric}{UPSTREAM}"] = rule.score(answers, truths, "upstream_exact")
    return {key: _with_figures(value, truths, figures) for key, value in scores.items()}


def _with_figures(scores: Scores, truths: Sequence[Truth], figures: Figures | None) -> Scores:
    further: dict[str, float] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for name, counts in (figures or {}).items():
        of_all = scores.weights or (1.0,) * len(truths)
        # Equal weights become 1, so that their sums are exact.
        counted = [counts(truth) * weight / max(of_all) for weight, truth in zip(of_all, truths, strict=True)]
        if total := sum(counted):
            further[name] = sum(map(operator.mul, counted, scores.per_question)) / total
            weights[name] = tuple(weight / total for weight in counted)
    return dataclasses.replace(
        scores, figures={**further, **scores.figures}, figure_weights={**weights, **scores.figure_weights}
    )
