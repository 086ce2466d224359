"""How sure a score is: standard errors over clusters of questions, intervals, paired differences.

    score = estimate(scores, clusters=image_ids)                 # Estimate(value=0.79, low=0.78, high=0.80, ..)
    change = paired(scores, scores_of_baseline, image_ids)       # Difference(value=0.012, p=0.03, ..)

Questions about one image are not independent: VQAv2 asks five of each, so a plain standard error is too small. All
errors here are those of a mean of clusters (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640, for evaluations).
Figures that weight questions differently, such as a mean over subjects, have `weighted` and `weighted_difference`.

Shape suffixes: Q questions, G clusters, P parts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from qwenvl_jax.runtime.errors import UserError

LEVEL = 0.95  # of intervals
POWER = 0.8  # with which a difference is to be shown, by convention


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a score over questions.

    Attributes:
      value: the mean.
      questions, clusters: how many there are.
      error: the standard error over clusters; NaN for one cluster.
      low, high: the interval that contains the true mean in `LEVEL` of all cases; infinite for one cluster.
    """

    value: float
    questions: int
    clusters: int
    error: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """The mean difference of two models over the same questions: the first minus the second.

    Attributes:
      p: the probability of a difference at least as large in either direction, if there were none.
      smallest: the smallest difference that a comparison like this one shows with probability `POWER`.
    """

    p: float
    smallest: float


def estimate(scores: Sequence[float], clusters: Sequence[Hashable] | None = None, *, bounded: bool = True) -> Estimate:
    """The mean of scores, with an interval.

    Scores between 0 and 1 get Wilson's interval for as many independent questions as would have the same standard error
    (Korn and Graubard 1998). So it stays between 0 and 1, and is no point if all answers are right.

    Args:
      scores: one per question.
      clusters: of each question, such as its image; None if each question is its own.
      bounded: whether scores are between 0 and 1; other scores get Student's interval.

    Raises:
      UserError: if there are no scores, scores are not finite or out of bounds, or the lengths differ.
    """
    scores_Q, codes_Q, count = _checked(scores, clusters)
    if bounded and (scores_Q.min() < 0 or scores_Q.max() > 1):
        raise UserError(f"scores reach from {scores_Q.min():g} to {scores_Q.max():g}; pass bounded=False for those")
    value = float(scores_Q.mean())
    error = _error(scores_Q, codes_Q, count)
    reach = _quantile((1 + LEVEL) / 2, count)
    if count < 2:
        low, high = (0.0, 1.0) if bounded else (-math.inf, math.inf)
    elif bounded:
        low, high = _wilson(value, error, count, reach)
    else:
        low, high = value - reach * error, value + reach * error
    return Estimate(value, len(scores_Q), count, error, low, high)


def paired(
    scores: Sequence[float], baseline: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Difference:
    """The difference of two models over the same questions, in the same order.

    Args:
      scores: of the model.
      baseline: of the other model.
      clusters: as in `estimate`.

    Raises:
      UserError: as `estimate`, or if the models were asked different numbers of questions.
    """
    if len(scores) != len(baseline):
        raise UserError(f"{len(scores)} scores cannot be compared with {len(baseline)}; score the same questions")
    change = np.asarray(scores, np.float64) - np.asarray(baseline, np.float64)
    found = estimate(change.tolist(), clusters, bounded=False)
    return _tested(found, found.clusters - 1)


def smallest_difference(error: float, clusters: int) -> float:
    """The smallest true difference that a two-sided test at 1 - `LEVEL` shows with probability `POWER`.

    Args:
      error: the standard error of the difference. Without a paired baseline, that of two independent models with the
        same score is sqrt(2) times the error of one; paired answers mostly have a smaller one.
      clusters: how many there are.
    """
    return error * (_quantile((1 + LEVEL) / 2, clusters) + _quantile(POWER, clusters)) if clusters > 1 else math.inf


def weighted_sum(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """A sum of scores over separate sets of questions, such as the mean over subjects, or a sum over subtasks.

    The sets must share no image. The interval is Student's, with the degrees of freedom of Welch and Satterthwaite.

    Raises:
      UserError: if there are no parts, or not one weight per part.
    """
    if not parts or len(parts) != len(weights):
        raise UserError(f"{len(parts)} scores need as many weights, not {len(weights)}")
    value = sum(weight * part.value for part, weight in zip(parts, weights, strict=True))
    questions = sum(part.questions for part in parts)
    clusters = sum(part.clusters for part in parts)
    error, freedom = _error_of_sum(parts, weights)
    if math.isnan(error):
        return Estimate(value, questions, clusters, math.nan, -math.inf, math.inf)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) if freedom else 0.0
    return Estimate(value, questions, clusters, error, value - reach * error, value + reach * error)


def weighted_sum_of_differences(parts: Sequence[Estimate], weights: Sequence[float]) -> Difference:
    """`weighted_sum` of differences, with its p. Raises UserError as `weighted_sum`."""
    change = weighted_sum(parts, weights)
    if math.isnan(change.error):
        return Difference(**dataclasses.asdict(change), p=1.0, smallest=math.inf)
    return _tested(change, _error_of_sum(parts, weights)[1])


def _error_of_sum(parts: Sequence[Estimate], weights: Sequence[float]) -> tuple[float, float]:
    """The standard error of a weighted sum, and its degrees of freedom; these are 0 if nothing scatters."""
    variances = [(weight * part.error) ** 2 for part, weight in zip(parts, weights, strict=True)]
    total = sum(variances)
    if math.isnan(total):
        return math.nan, 0.0
    freedom = sum(variance**2 / (part.clusters - 1) for part, variance in zip(parts, variances, strict=True))
    return math.sqrt(total), total**2 / freedom if freedom else 0.0


@dataclasses.dataclass(frozen=True)
class Weighting:
    """How a figure is made from the scores of questions.

    Attributes:
      weights: one per question; the figure is the sum of weight times score. A question of weight zero does not count.
      clusters: of each question, such as its image.
      parts: of each question, if the figure is a weighted sum of means over the parts of a benchmark, such as the mean
        over subjects. Then only the scatter within the parts counts. None if it is one mean over all questions.
    """

    weights: Sequence[float]
    clusters: Sequence[Hashable]
    parts: Sequence[Hashable] | None = None


def weighted(scores: Sequence[float], weighting: Weighting, *, bounded: bool) -> Estimate:
    """A weighted sum of the scores of questions, with an interval.

    The error is that of the linearised figure, summed up by cluster (Binder 1983); equal weights give that of
    `estimate`. Clusters may reach over several parts. The only cluster of a part is compared with all questions,
    because it has no scatter within the part (Lumley 2004, `survey.lonely.psu="adjust"`).

    Args:
      scores: one per question.
      weighting: see there.
      bounded: whether the figure is a mean of scores between 0 and 1, which gets Wilson's interval as in `estimate`.

    Raises:
      UserError: if no question has a weight, numbers are not finite, weights are negative, or the lengths differ.
    """
    spread, freedom = _spread(scores, weighting)
    if spread.clusters < 2:
        low, high = (0.0, 1.0) if bounded else (-math.inf, math.inf)
        return dataclasses.replace(spread, low=low, high=high)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    if not bounded:
        return dataclasses.replace(
            spread, low=spread.value - reach * spread.error, high=spread.value + reach * spread.error
        )
    value = min(1.0, max(0.0, spread.value))  # a sum of weights is 1 but for rounding
    low, high = _wilson(value, spread.error, spread.clusters, reach)
    return dataclasses.replace(spread, value=value, low=min(low, value), high=max(high, value))


def weighted_difference(scores: Sequence[float], baseline: Sequence[float], weighting: Weighting) -> Difference:
    """`paired` for a figure with weights. Raises UserError as `weighted`, or if the numbers of scores differ."""
    if len(scores) != len(baseline):
        raise UserError(f"{len(scores)} scores cannot be compared with {len(baseline)}; score the same questions")
    change = [score - other for score, other in zip(scores, baseline, strict=True)]
    _, freedom = _spread(change, weighting)
    return _tested(weighted(change, weighting, bounded=False), freedom)


def _tested(change: Estimate, freedom: float) -> Difference:
    """A difference with its p and the smallest one that would be shown, by Student's distribution."""
    if change.clusters < 2:
        p, smallest = 1.0, math.inf
    elif change.error == 0:
        p, smallest = float(change.value == 0), 0.0
    else:
        p = float(2 * stats.t.sf(abs(change.value) / change.error, freedom))
        smallest = change.error * float(stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(POWER, freedom))
    return Difference(**dataclasses.asdict(change), p=p, smallest=smallest)


def _spread(scores: Sequence[float], weighting: Weighting) -> tuple[Estimate, float]:
    """The figure with its standard error but without an interval, and the degrees of freedom of the error.

    These are those of Welch and Satterthwaite over the parts.
    """
    weights_Q = np.asarray(weighting.weights, np.float64)
    if len(weights_Q) != len(scores) or not np.isfinite(weights_Q).all() or weights_Q.min(initial=0.0) < 0:
        raise UserError(f"{len(scores)} scores need as many weights that are finite and not negative")
    counted_Q = weights_Q > 0
    scores_Q, clusters_Q, _ = _checked(scores, weighting.clusters)
    if not counted_Q.any():
        raise UserError("there are no scores with a weight; ask at least one question")
    parts_Q = _codes(weighting.parts) if weighting.parts is not None else np.zeros(len(scores_Q), np.int64)
    if len(parts_Q) != len(scores_Q):
        raise UserError(f"{len(scores_Q)} scores need as many parts, not {len(parts_Q)}")
    scores_Q = scores_Q[counted_Q]
    weights_Q = weights_Q[counted_Q]
    clusters_Q = _codes(clusters_Q[counted_Q].tolist())
    parts_Q = _codes(parts_Q[counted_Q].tolist())
    count = int(clusters_Q.max()) + 1
    value = float(weights_Q @ scores_Q)
    influence_Q, freedom = _influences(scores_Q, weights_Q, clusters_Q, parts_Q)
    if count < 2:
        return Estimate(value, len(scores_Q), count, math.nan, -math.inf, math.inf), math.nan
    error = math.sqrt(float(np.sum(np.bincount(clusters_Q, weights=influence_Q) ** 2)))
    return Estimate(value, len(scores_Q), count, error, -math.inf, math.inf), freedom


def _influences(
    scores_Q: np.ndarray, weights_Q: np.ndarray, clusters_Q: np.ndarray, parts_Q: np.ndarray
) -> tuple[np.ndarray, float]:
    """How much each question moves the figure [Q], and the degrees of freedom of the error."""
    overall = _center(scores_Q, weights_Q)
    influence_Q = np.zeros(len(scores_Q))
    variances = []
    freedoms = []
    for part in range(int(parts_Q.max()) + 1):
        members = parts_Q == part
        codes = _codes(clusters_Q[members].tolist())
        groups = int(codes.max()) + 1
        center = _center(scores_Q[members], weights_Q[members]) if groups > 1 else overall
        scale = math.sqrt(groups / (groups - 1)) if groups > 1 else 1.0
        influence_Q[members] = scale * weights_Q[members] * (scores_Q[members] - center)
        variances.append(float(np.sum(np.bincount(codes, weights=influence_Q[members]) ** 2)))
        freedoms.append(max(groups - 1, 1))
    share = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    if not share:
        return influence_Q, float(max(1, clusters_Q.max() + 1 - len(variances)))
    return influence_Q, sum(variances) ** 2 / share


def _center(scores_Q: np.ndarray, weights_Q: np.ndarray) -> float:
    """The weighted mean; that of equal scores is exact, so that they have no scatter."""
    if scores_Q.min() == scores_Q.max():
        return float(scores_Q[0])
    return float(weights_Q @ scores_Q / weights_Q.sum())


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    """The number of each label, in the order of their first use."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int64)


def _checked(scores: Sequence[float], clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores [Q], the number of the cluster of each [Q], and how many clusters there are."""
    scores_Q = np.asarray(scores, np.float64)
    if not scores_Q.size:
        raise UserError("there are no scores; ask at least one question")
    if not np.isfinite(scores_Q).all():
        raise UserError(f"the score of question {int(np.argmin(np.isfinite(scores_Q)))} is not a finite number")
    if clusters is None:
        return scores_Q, np.arange(len(scores_Q)), len(scores_Q)
    if len(clusters) != len(scores_Q):
        raise UserError(f"{len(scores_Q)} scores need as many clusters, not {len(clusters)}")
    codes_Q = _codes(clusters)
    return scores_Q, codes_Q, int(codes_Q.max()) + 1


def _error(scores_Q: np.ndarray, codes_Q: np.ndarray, count: int) -> float:
    """The standard error of the mean, from the sums of the clusters' deviations, corrected by G / (G - 1)."""
    if count < 2:
        return math.nan
    sums_G = np.bincount(codes_Q, weights=scores_Q - scores_Q.mean(), minlength=count)
    return math.sqrt(count / (count - 1) * float(np.sum(sums_G**2))) / len(scores_Q)


def _quantile(probability: float, clusters: int) -> float:
    """Of Student's distribution with G - 1 degrees of freedom."""
    return float(stats.t.ppf(probability, clusters - 1)) if clusters > 1 else math.nan


def _wilson(value: float, error: float, clusters: int, reach: float) -> tuple[float, float]:
    """Wilson's interval for the number of independent questions that would have this standard error."""
    independent = value * (1 - value) / error**2 if error > 0 else clusters
    shrink = 1 + reach**2 / independent
    center = (value + reach**2 / (2 * independent)) / shrink
    half = reach / shrink * math.sqrt(value * (1 - value) / independent + reach**2 / (4 * independent**2))
    return max(0.0, center - half), min(1.0, center + half)
