"""The interface of metrics: answers and truths of all questions in, one score per question and the figure out."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.runtime.errors import UserError

VARIANTS = ("official", "upstream_exact")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What an answer is compared with. A metric reads only the fields that it needs.

    Attributes:
      answers: the answers of all annotators, the reference captions, or the right option ("A", or "yes").
      box: `[x1, y1, x2, y2]` in pixels.
      size: width and height of the image in pixels.
      group: questions of the same group count together: the two questions about an image of MME, the rotations of a
        question of MMBench.
      category: the subtask, subject or question type.
      options: the texts of the options A, B, C, ..
    """

    answers: tuple[str, ...] = ()
    box: tuple[float, ...] | None = None
    size: tuple[float, float] | None = None
    group: str = ""
    category: str = ""
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a benchmark.

    Attributes:
      aggregate: the figure of papers; see `Metric.unit`.
      per_question: one value per question, in the order of the questions.
      weights: one per question, so that the sum of weight times value is the aggregate; it is then a weighted mean,
        whose interval follows from the values. None if the aggregate is a function of the whole corpus (BLEU).
      figures: further figures by name, such as those of categories.
      figure_weights: of those further figures that are weighted sums of the same values: one weight per question, zero
        for a question that does not count.
      parts: the part of the benchmark to which each question belongs, if the aggregate is a weighted sum of the means
        of the parts, such as a mean over subjects; then only the scatter within the parts makes it uncertain. Else
        empty.
      bounded: whether all values are between 0 and 1.
    """

    aggregate: float
    per_question: tuple[float, ...]
    weights: tuple[float, ...] | None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    figure_weights: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    parts: tuple[str, ...] = ()
    bounded: bool = True


Rule = Callable[[Sequence[str], Sequence[Truth]], Scores]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its official rule and, if it differs, the rule of the released evaluation scripts.

    Attributes:
      name: its key in `registry.METRICS`.
      official: the rule of the benchmark's authors.
      upstream_exact: the rule of the released scripts; None if it is the official one.
      difference: why the two give different figures, in one sentence; empty if they do not.
      unit: the factor between `Scores.aggregate` and the number in papers (100 for shares).
    """

    name: str
    official: Rule
    upstream_exact: Rule | None = None
    difference: str = ""
    unit: float = 100.0

    def score(self, answers: Sequence[str], truths: Sequence[Truth], variant: str = "official") -> Scores:
        """Scores all answers of a benchmark. All texts are brought into one Unicode form first.

        Raises:
          UserError: if there are no answers, if their number is not that of the truths, or if the variant is unknown.
        """
        if variant not in VARIANTS:
            raise UserError(f"the variant {variant!r} of {self.name} is unknown; use one of {', '.join(VARIANTS)}")
        if len(answers) != len(truths):
            raise UserError(
                f"{self.name} got {len(answers)} answers for {len(truths)} truths; give one answer for each"
            )
        if not answers:
            raise UserError(f"{self.name} got no answers, so there is nothing to score; give at least one")
        rule = self.official if variant == "official" or self.upstream_exact is None else self.upstream_exact
        return rule([tags.normal_form(answer) for answer in answers], [_normal(truth) for truth in truths])


def _normal(truth: Truth) -> Truth:
    texts: dict[str, Any] = {
        "answers": tuple(tags.normal_form(answer) for answer in truth.answers),
        "options": tuple(tags.normal_form(option) for option in truth.options),
    }
    return dataclasses.replace(truth, **texts)


def mean_scores(values: Sequence[float], figures: Mapping[str, float] | None = None) -> Scores:
    """The scores whose aggregate is the plain mean of the values; 0.0 if there are no values."""
    weight = 1 / max(1, len(values))
    return Scores(sum(values) / max(1, len(values)), tuple(values), (weight,) * len(values), figures or {})


def mean_over(values: Sequence[float], counted: Sequence[bool]) -> Scores:
    """The scores whose aggregate is the mean of the values that are counted; the others have no weight."""
    number = max(1, sum(counted))
    chosen = [value for value, is_counted in zip(values, counted, strict=True) if is_counted]
    weights = tuple(float(is_counted) / number for is_counted in counted)
    return Scores(sum(chosen) / number, tuple(values), weights)


def weights_of_parts(parts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The weights that make the mean of each part of a benchmark, by the name of the part.

    Args:
      parts: of each question.
    """
    sizes = collections.Counter(parts)
    return {part: tuple(float(part == other) / size for other in parts) for part, size in sizes.items()}


def each(question: Callable[[str, Truth], float]) -> Rule:
    """The rule that scores every question alone and takes the mean."""

    def rule(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
        return mean_scores([question(answer, truth) for answer, truth in zip(answers, truths, strict=True)])

    return rule


def required_answers(truth: Truth) -> tuple[str, ...]:
    """The answers of a truth. Raises UserError if it has none."""
    if not truth.answers:
        raise UserError("a question without any annotated answer cannot be scored; add its answers")
    return truth.answers
