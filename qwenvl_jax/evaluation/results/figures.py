"""From rows of predictions to figures with intervals and comparisons with a baseline.

    figures = figures_of(benchmark, rows)                      # {"vqa_accuracy": Figure(value=0.79, low=0.78, ..)}
    comparisons = compare(benchmark, rows, baseline_rows)      # {"vqa_accuracy": Comparison(value=0.012, p=0.03, ..)}

The first figure is the one of the paper's table. A number that is unknown is None here, never NaN or infinite, because
JSON has neither.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from qwenvl_jax.evaluation.benchmarks.benchmark import UPSTREAM, Benchmark
from qwenvl_jax.evaluation.metrics.metric import Scores
from qwenvl_jax.evaluation.metrics.registry import METRICS
from qwenvl_jax.evaluation.results.statistics import (
    Difference,
    Estimate,
    Weighting,
    smallest_difference,
    weighted,
    weighted_difference,
    weighted_sum,
    weighted_sum_of_differences,
)
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

_CLOSE = 1e-6  # relative: two ways to add the same numbers up differ by less

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One score.

    Attributes:
      value: as `Scores.aggregate`.
      unit: the factor between `value`, all other numbers here, and the number in papers.
      questions, clusters: how many count, and of how many pictures they are.
      error: the standard error over clusters; None if it is unknown, as that of BLEU or of one cluster.
      low, high: the interval that contains the true value in 95 % of all cases; None if it is unknown.
      smallest: the smallest difference that a comparison of two independent models shows in four of five cases. Paired
        answers mostly show smaller ones. None if it is unknown, as for a model without a single mistake.
      right: the sum of the values of questions, if each is between 0 and 1, so that it counts right answers.
      figures: the figures of categories by name.
      upstream_exact: by the rule of the released scripts, if that differs.
      reason: why it differs.
      clean: over the questions that no training corpus touched, if a list of these was given and names any.
    """

    value: float
    unit: float
    questions: int
    clusters: int
    error: float | None = None
    low: float | None = None
    high: float | None = None
    smallest: float | None = None
    right: float | None = None
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    upstream_exact: Figure | None = None
    reason: str = ""
    clean: Figure | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference of two models over the questions that both were asked: the model minus the baseline.

    Attributes:
      value, unit, questions, clusters, error, low, high: as in `Figure`.
      missing: questions that only one of the two was asked, or whose truth has changed between them.
      p: the probability of a difference at least as large in either direction if there were none; None if unknown.
      smallest: the smallest difference that a comparison like this one shows in four of five cases.
      figures: the differences of further figures by name.
    """

    value: float
    unit: float
    questions: int
    clusters: int
    missing: int
    error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    smallest: float | None = None
    figures: Mapping[str, Comparison] = dataclasses.field(default_factory=dict)


def figures_of(
    benchmark: Benchmark, rows: Rows, clean: Collection[str] | None = None, lost: int = 0
) -> dict[str, Figure]:
    """The figures of a benchmark with intervals, the main one first.

    Args:
      benchmark: how rows are scored.
      rows: of predictions. Questions of one picture share `row["cluster"]`; without it each question is its own.
      clean: ids of untouched questions or records, see `is_clean`.
      lost: how many records could not be read. Each counts as one average question that scores nothing, except on the
        clean subset, because nobody knows whether it would belong there.

    Returns:
      An empty dictionary if there are no rows, or only a server knows the truth.
    """
    if not rows or benchmark.hidden:
        return {}
    figures = _scored(benchmark, rows)
    if lost:
        figures = {name: _with_lost(figure, lost) for name, figure in figures.items()}
    if clean is None:
        return figures
    untouched = [row for row in rows if is_clean(row, benchmark, clean)]
    on_clean = _scored(benchmark, untouched) if untouched else {}
    return {name: dataclasses.replace(figure, clean=on_clean.get(name)) for name, figure in figures.items()}


def compare(benchmark: Benchmark, rows: Rows, baseline_rows: Rows) -> dict[str, Comparison]:
    """The differences of all figures to a baseline, over the questions that both were asked.

    Questions are paired by their id; of a repeated id, the first with the first. A question whose truth differs between
    the two is left out, too.

    Args:
      benchmark: how rows are scored.
      rows: of predictions of the model.
      baseline_rows: those of the baseline, in any order.

    Returns:
      An empty dictionary if they share no question, or only a server knows the truth.
    """
    ours = _by_id(rows)
    others = _by_id(baseline_rows)
    pairs = [
        (row, others[key])
        for key, row in ours.items()
        if key in others and row.get("truth") == others[key].get("truth")
    ]
    if not pairs or benchmark.hidden:
        return {}
    missing = len(set(ours) | set(others)) - len(pairs)
    clusters = _clusters([row for row, _ in pairs])
    scores = benchmark.score([dict(row) for row, _ in pairs])
    baseline = benchmark.score([dict(row) for _, row in pairs])
    return {
        name: _comparison(scores[name], baseline[name], clusters, missing, benchmark.unit)
        for name in scores
        if name in baseline
    }


def _by_id(rows: Rows) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Rows by id and, since publishers repeat ids, by how often the id was seen before."""
    seen: collections.Counter[str] = collections.Counter()
    by_id = {}
    for row in rows:
        by_id[row["id"], seen[row["id"]]] = row
        seen[row["id"]] += 1
    return by_id


def joined(figures: Sequence[Figure], weights: Sequence[float]) -> Figure:
    """The weighted sum of figures of benchmarks that share no picture, such as the two halves of ChartQA's test set."""
    estimate = weighted_sum([_estimate(figure) for figure in figures], weights)
    figure = _from_estimate(estimate.value, estimate, figures[0].unit)
    upstream = [each.upstream_exact for each in figures if each.upstream_exact]
    clean = [each.clean for each in figures if each.clean]
    rights = [figure.right for figure in figures if figure.right is not None]
    return dataclasses.replace(
        figure,
        right=sum(rights) if len(rights) == len(figures) else None,
        upstream_exact=joined(upstream, weights) if len(upstream) == len(figures) else None,
        reason=figures[0].reason,
        clean=joined(clean, weights) if len(clean) == len(figures) else None,
    )


def joined_comparison(comparisons: Sequence[Comparison], weights: Sequence[float]) -> Comparison:
    """The weighted sum of differences on benchmarks that share no picture."""
    change = weighted_sum_of_differences([_estimate(each) for each in comparisons], weights)
    missing = sum(each.missing for each in comparisons)
    plain = Comparison(change.value, comparisons[0].unit, change.questions, change.clusters, missing)
    return plain if math.isnan(change.error) else _tested(plain, change)


def is_clean(row: Mapping[str, Any], benchmark: Benchmark, clean: Collection[str]) -> bool:
    """Whether a list of untouched samples names a question.

    Args:
      row: of predictions. `row["record"]` is the id of its record; without it, the record has the id of the question.
      benchmark: its corpus is the source of its records.
      clean: ids of questions, or "source/record id" as `python -m data_pipelines.duplicates.untouched` writes them.
    """
    record = row.get("record", row["id"])
    source = row.get("source", benchmark.corpus)
    return row["id"] in clean or f"{source}/{record}" in clean


def read_clean(path: str) -> frozenset[str]:
    """The ids of untouched samples, from the file of `python -m data_pipelines.duplicates.untouched`.

    Raises:
      UserError: if the file is missing or is something else.
    """
    lists = artifacts.read_json(storage.path(path))
    clean = lists.get("clean") if isinstance(lists, dict) else None
    if not isinstance(clean, list) or not all(isinstance(name, str) for name in clean):
        raise UserError(f'{path} has no list "clean"; write it with `python -m data_pipelines.duplicates.untouched`')
    return frozenset(clean)


def _scored(benchmark: Benchmark, rows: Rows) -> dict[str, Figure]:
    """All figures, those of the released scripts as an attribute of the official ones."""
    clusters = _clusters(rows)
    scores = benchmark.score([dict(row) for row in rows])
    figures = {}
    for name, each in scores.items():
        if name.endswith(UPSTREAM) and name.removesuffix(UPSTREAM) in scores:
            continue
        figure = _figure(each, clusters, benchmark.unit)
        if upstream := scores.get(f"{name}{UPSTREAM}"):
            reason = METRICS[name].difference if name in METRICS else ""
            released = _figure(upstream, clusters, benchmark.unit)
            figure = dataclasses.replace(figure, upstream_exact=released, reason=reason)
        figures[name] = figure
    return figures


def _with_lost(figure: Figure, lost: int) -> Figure:
    """A figure in which lost records count as questions that score nothing."""
    share = figure.questions / (figure.questions + lost)
    scaled = {
        name: value * share
        for name in ("value", "error", "low", "high", "smallest")
        if (value := getattr(figure, name)) is not None
    }
    figures = {name: _with_lost(each, lost) for name, each in figure.figures.items() if figure.questions}
    upstream = figure.upstream_exact and _with_lost(figure.upstream_exact, lost)
    return dataclasses.replace(
        figure, **scaled, questions=figure.questions + lost, figures=figures, upstream_exact=upstream
    )


def _clusters(rows: Rows) -> list[Hashable]:
    return [row.get("cluster", ("id", row["id"])) for row in rows]


def _figure(scores: Scores, clusters: Sequence[Hashable], unit: float) -> Figure:
    """A figure with its interval, and its further figures."""
    further = {
        name: _weighted_figure(value, scores, scores.figure_weights.get(name), clusters, unit)
        for name, value in scores.figures.items()
    }
    main = _weighted_figure(scores.aggregate, scores, scores.weights, clusters, unit)
    right = sum(scores.per_question) if scores.bounded else None
    return dataclasses.replace(main, figures=further, right=right)


def _weighted_figure(
    value: float, scores: Scores, weights: Sequence[float] | None, clusters: Sequence[Hashable], unit: float
) -> Figure:
    """The figure that weights make from the values of questions; without an interval if it has no weights."""
    if weights is None or not any(weights) or len(scores.per_question) != len(clusters):
        return Figure(value, unit, len(scores.per_question), len(set(clusters)))
    weighting = Weighting(weights, clusters, scores.parts or None)
    # A mean of values between 0 and 1 is between them, too; a sum may not be.
    bounded = scores.bounded and min(scores.per_question) >= 0 and max(scores.per_question) <= 1
    bounded = bounded and math.isclose(sum(weights), 1.0, rel_tol=_CLOSE)
    return _from_estimate(value, weighted(scores.per_question, weighting, bounded=bounded), unit)


def _estimate(figure: Figure | Comparison) -> Estimate:
    """As much of a figure as a sum needs."""
    error = math.nan if figure.error is None else figure.error
    return Estimate(figure.value, figure.questions, figure.clusters, error, -math.inf, math.inf)


def _from_estimate(value: float, estimate: Estimate, unit: float) -> Figure:
    """A figure with the interval of an estimate, if that is an estimate of the figure.

    It is not if the figure is no sum of the values of questions, for example because it was cut off at zero.
    """
    if not math.isclose(estimate.value, value, rel_tol=_CLOSE, abs_tol=_CLOSE):
        return Figure(value, unit, estimate.questions, estimate.clusters)
    if not estimate.error and not 0 <= estimate.low < estimate.high <= 1:
        # All questions have the same value. That says nothing about the next one, unless the value is a share.
        return Figure(value, unit, estimate.questions, estimate.clusters, error=_finite(estimate.error))
    two_models = math.sqrt(2) * estimate.error
    return Figure(
        value=value,
        unit=unit,
        questions=estimate.questions,
        clusters=estimate.clusters,
        error=_finite(estimate.error),
        low=_finite(estimate.low),
        high=_finite(estimate.high),
        smallest=_finite(smallest_difference(two_models, estimate.clusters)) if estimate.error else None,
    )


def _comparison(
    scores: Scores, baseline: Scores, clusters: Sequence[Hashable], missing: int, unit: float
) -> Comparison:
    """The difference of a figure, and of its further figures."""
    counts = Comparison(0.0, unit, len(scores.per_question), len(set(clusters)), missing)
    further = {
        name: _difference(
            dataclasses.replace(counts, value=scores.figures[name] - baseline.figures[name]),
            (scores, scores.figure_weights.get(name)),
            (baseline, baseline.figure_weights.get(name)),
            clusters,
        )
        for name in scores.figures
        if name in baseline.figures
    }
    plain = dataclasses.replace(counts, value=scores.aggregate - baseline.aggregate)
    main = _difference(plain, (scores, scores.weights), (baseline, baseline.weights), clusters)
    return dataclasses.replace(main, figures=further)


Weighted = tuple[Scores, Sequence[float] | None]


def _difference(plain: Comparison, ours: Weighted, theirs: Weighted, clusters: Sequence[Hashable]) -> Comparison:
    """A difference with its interval; as it is if the two figures do not weight the questions alike."""
    (scores, weights), (baseline, baseline_weights) = ours, theirs
    if weights is None or not _alike(weights, baseline_weights) or len(scores.per_question) != len(clusters):
        return plain
    change = weighted_difference(
        scores.per_question, baseline.per_question, Weighting(weights, clusters, scores.parts or None)
    )
    if not math.isclose(change.value, plain.value, rel_tol=_CLOSE, abs_tol=_CLOSE):
        return plain
    return _tested(plain, change)


def _tested(plain: Comparison, change: Difference) -> Comparison:
    """A comparison with the numbers of a difference."""
    return dataclasses.replace(
        plain,
        questions=change.questions,
        clusters=change.clusters,
        error=_finite(change.error),
        low=_finite(change.low),
        high=_finite(change.high),
        p=_finite(change.p),
        smallest=_finite(change.smallest) if change.error else None,
    )


def _alike(weights: Sequence[float], others: Sequence[float] | None) -> bool:
    if others is None or len(weights) != len(others) or not any(weights):
        return False
    return all(math.isclose(weight, other, rel_tol=_CLOSE) for weight, other in zip(weights, others, strict=True))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
