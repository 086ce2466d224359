"""Intervals and tests against SciPy, simulation, and the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qwenvl_jax.evaluation.results.statistics import (
    Estimate,
    Weighting,
    estimate,
    paired,
    smallest_difference,
    weighted,
    weighted_difference,
    weighted_sum,
)
from qwenvl_jax.runtime.errors import UserError


def answers(draw: np.random.Generator, images: int, per_image: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong answers to several questions per image; some images are harder than others."""
    ease = np.clip(0.7 + draw.normal(0, spread, images), 0.02, 0.98)
    rights = (draw.random((images, per_image)) < ease[:, None]).astype(float)
    return rights.ravel(), np.repeat(np.arange(images), per_image)


def test_without_clusters_it_is_the_usual_standard_error() -> None:
    scores = np.random.default_rng(0).random(50)
    result = estimate(scores.tolist(), bounded=False)
    low, high = stats.t.interval(0.95, 49, loc=scores.mean(), scale=stats.sem(scores))
    assert (result.value, result.error) == pytest.approx((scores.mean(), stats.sem(scores)))
    assert (result.low, result.high) == pytest.approx((low, high))


def test_clusters_of_equal_size_are_the_mean_of_means() -> None:
    scores, clusters = answers(np.random.default_rng(1), 40, 5, 0.3)
    means = scores.reshape(40, 5).mean(axis=1)
    assert estimate(scores.tolist(), clusters.tolist()).error == pytest.approx(stats.sem(means))


def test_the_error_is_that_of_a_bootstrap_over_images() -> None:
    draw = np.random.default_rng(2)
    scores, clusters = answers(draw, 200, 4, 0.3)
    keep = draw.random(len(scores)) < 0.7  # clusters of different sizes
    scores, clusters = scores[keep], clusters[keep]
    groups = [scores[clusters == number] for number in np.unique(clusters)]
    means = []
    for _ in range(2000):
        chosen = draw.integers(0, len(groups), len(groups))
        means.append(np.concatenate([groups[number] for number in chosen]).mean())
    error = estimate(scores.tolist(), clusters.tolist()).error
    assert error == pytest.approx(np.std(means), rel=0.08)
    assert error > 1.1 * estimate(scores.tolist()).error


@pytest.mark.parametrize(("images", "spread"), [(30, 0.0), (30, 0.3), (300, 0.3)])
def test_intervals_contain_the_true_mean_in_19_of_20_cases(images: int, spread: float) -> None:
    draw = np.random.default_rng(3)
    truth = np.clip(0.7 + np.random.default_rng(4).normal(0, spread, 2_000_000), 0.02, 0.98).mean()
    inside = 0
    for _ in range(500):
        scores, clusters = answers(draw, images, 5, spread)
        result = estimate(scores.tolist(), clusters.tolist())
        inside += result.low <= truth <= result.high
    assert 0.92 <= inside / 500 <= 0.98


def test_all_right_answers_leave_a_doubt() -> None:
    """Then Wilson's bound is n / (n + z^2)."""
    result = estimate([1.0] * 20)
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(20 / (20 + stats.t.ppf(0.975, 19) ** 2))


def test_wilson_is_scipys_for_independent_questions() -> None:
    """With as many questions, Student's quantile is the normal one, and the error that of n - 1."""
    scores = [1.0] * 61_000 + [0.0] * 39_000
    result = estimate(scores)
    expected = stats.binomtest(61_000, 100_000).proportion_ci(0.95, "wilson")
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_paired_differences_are_scipys() -> None:
    draw = np.random.default_rng(5)
    first = draw.random(80)
    second = np.clip(first + draw.normal(0.02, 0.1, 80), 0, 1)
    result = paired(first.tolist(), second.tolist())
    expected = stats.ttest_rel(first, second)
    assert result.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_pairs_show_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(6)
    scores, clusters = answers(draw, 400, 5, 0.3)
    better = np.where((scores == 0) & (draw.random(len(scores)) < 0.1), 1.0, scores)
    change = paired(better.tolist(), scores.tolist(), clusters.tolist())
    new, old = (estimate(each.tolist(), clusters.tolist()) for each in (better, scores))
    assert change.p < 1e-6 and new.low < old.high


def test_the_smallest_difference_is_shown_in_four_of_five_cases() -> None:
    draw = np.random.default_rng(7)
    images, error = 100, 0.02
    shift = smallest_difference(error, images)
    shown = 0
    for _ in range(2000):
        change = draw.normal(shift, error * math.sqrt(images), images)
        shown += paired(change.tolist(), np.zeros(images).tolist()).p < 0.05
    assert 0.77 <= shown / 2000 <= 0.83


def test_no_difference_is_no_evidence() -> None:
    same = paired([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    assert (same.value, same.p, same.smallest) == (0.0, 1.0, 0.0)
    one = paired([1.0], [0.0])
    assert (one.value, one.p, one.smallest) == (1.0, 1.0, math.inf)
    assert paired([1.0, 1.0], [0.0, 0.0]).p == 0.0


def test_a_mean_over_subjects_is_scipys_welch_test() -> None:
    draw = np.random.default_rng(8)
    first, second = draw.random(12), draw.random(30) * 0.5
    parts = [estimate(first.tolist()), estimate(second.tolist())]
    result = weighted_sum(parts, (1.0, -1.0))
    expected = stats.ttest_ind(first, second, equal_var=False)
    interval = expected.confidence_interval()
    assert result.value / result.error == pytest.approx(expected.statistic)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_a_weighted_figure_with_equal_weights_is_the_plain_mean() -> None:
    draw = np.random.default_rng(3)
    scores = (draw.random(90) < 0.7).astype(float).tolist()
    clusters = [number // 3 for number in range(90)]
    plain = estimate(scores, clusters)
    equal = weighted(scores, Weighting([1 / 90] * 90, clusters), bounded=True)
    assert [equal.value, equal.error, equal.low, equal.high] == pytest.approx(
        [plain.value, plain.error, plain.low, plain.high]
    )
    other = (draw.random(90) < 0.6).astype(float).tolist()
    change = weighted_difference(scores, other, Weighting([1 / 90] * 90, clusters))
    expected = paired(scores, other, clusters)
    assert [change.p, change.smallest, change.low] == pytest.approx([expected.p, expected.smallest, expected.low])


def test_parts_that_share_no_picture_are_a_sum_of_independent_means() -> None:
    draw = np.random.default_rng(4)
    first, second = draw.random(12).tolist(), draw.random(30).tolist()
    expected = weighted_sum([estimate(first), estimate(second)], (0.5, 0.5))
    weights = [0.5 / 12] * 12 + [0.5 / 30] * 30
    parts = ["first"] * 12 + ["second"] * 30
    whole = weighted(first + second, Weighting(weights, list(range(42)), parts), bounded=False)
    assert [whole.value, whole.error, whole.low, whole.high] == pytest.approx(
        [expected.value, expected.error, expected.low, expected.high]
    )


def test_questions_without_weight_do_not_count() -> None:
    scores = [1.0, 0.0, 1.0, 1.0, 0.0]
    some = weighted(scores, Weighting([0.25, 0.25, 0.25, 0.25, 0.0], list("abcdx")), bounded=True)
    assert some == weighted(scores[:4], Weighting([0.25] * 4, list("abcd")), bounded=True)


def test_a_subject_with_one_picture_is_compared_with_all() -> None:
    """By hand: two subjects of one question each are then two draws of one kind."""
    scores = weighted([1.0, 0.0], Weighting([0.5, 0.5], ["a", "b"], ["x", "y"]), bounded=False)
    assert (scores.value, scores.error) == (0.5, pytest.approx(math.sqrt(0.125)))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_any_scores_have_an_interval_around_them(rows: list[tuple[float, int]]) -> None:
    scores = [score for score, _ in rows]
    clusters = [cluster for _, cluster in rows]
    result = estimate(scores, clusters)
    assert result.low - 1e-12 <= result.value <= result.high + 1e-12
    assert 0 <= result.low <= result.high <= 1
    assert result.clusters == len(set(clusters))


def test_wrong_scores_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="there are no scores"):
        estimate([])
    with pytest.raises(UserError, match="the score of question 1 is not a finite number"):
        estimate([0.0, math.nan])
    with pytest.raises(UserError, match="scores reach from 0 to 3; pass bounded=False"):
        estimate([0.0, 3.0])
    with pytest.raises(UserError, match="2 scores need as many clusters, not 1"):
        estimate([0.0, 1.0], ["a"])
    with pytest.raises(UserError, match="1 scores cannot be compared with 2"):
        paired([0.0], [0.0, 1.0])
    with pytest.raises(UserError, match="need as many weights"):
        weighted_sum([Estimate(0.5, 1, 1, 0.0, 0.0, 1.0)], ())
