"""Figures with intervals and comparisons: against the bootstrap, the plain statistics, and by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.metrics.metric import Scores, Truth
from qwenvl_jax.evaluation.metrics.registry import METRICS
from qwenvl_jax.evaluation.results.figures import (
    Comparison,
    Figure,
    compare,
    figures_of,
    joined,
    joined_comparison,
    read_clean,
)
from qwenvl_jax.evaluation.results.statistics import estimate, paired, weighted_sum
from qwenvl_jax.runtime.errors import UserError

Rows = list[dict[str, Any]]


def benchmark_of(metric: str, **fields: Any) -> Benchmark:
    """A benchmark whose rows are scored by a metric, and by the released scripts if these differ."""

    def score(rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
        answers = [row["prediction"] for row in rows]
        truths = [Truth(**row["truth"]) for row in rows]
        scores = {metric: METRICS[metric].score(answers, truths)}
        if METRICS[metric].upstream_exact is not None:
            scores[f"{metric}_upstream_exact"] = METRICS[metric].score(answers, truths, "upstream_exact")
        return scores

    values: dict[str, Any] = {"corpus": "quiz", "unit": METRICS[metric].unit} | fields
    return Benchmark("quiz", "Quiz", lambda *_: [], lambda text, about: about, lambda about: about, score, **values)


def choices(draw: np.random.Generator, count: int, subjects: int, right: float = 0.6) -> Rows:
    """Multiple choice over subjects of different size and difficulty, several questions per picture."""
    rows: Rows = []
    for number in range(count):
        subject = int(draw.integers(0, subjects) ** 2 / subjects)
        is_right = draw.random() < min(0.95, right + 0.3 * subject / subjects)
        rows.append(
            {
                "id": f"q{number}",
                "cluster": f"picture {number // 3}",
                "prediction": "A" if is_right else "B",
                "truth": {"answers": ["A"], "category": f"subject {subject}"},
            }
        )
    return rows


def yes_or_no(draw: np.random.Generator, images: int) -> Rows:
    """MME: two questions per picture."""
    rows: Rows = []
    for number in range(images):
        subtask = ("existence", "count", "OCR", "code_reasoning")[number % 7 % 4]
        for truth in ("yes", "no"):
            prediction = truth if draw.random() < 0.75 else "no idea" if truth == "yes" else "Yes."
            rows.append(
                {
                    "id": f"{number}{truth}",
                    "cluster": number,
                    "prediction": prediction,
                    "truth": {"answers": [truth], "category": subtask, "group": str(number)},
                }
            )
    return rows


def rotations(draw: np.random.Generator, questions: int) -> Rows:
    """MMBench: one to four rotations of each question, two questions per picture."""
    rows: Rows = []
    for number in range(questions):
        ease = draw.random() ** 0.3
        for turn in range(int(draw.integers(1, 5))):
            rows.append(
                {
                    "id": f"{number}.{turn}",
                    "cluster": number // 2,
                    "prediction": "A" if draw.random() < ease else "B",
                    "truth": {"answers": ["A"], "group": str(number), "options": ["net", "cat"]},
                }
            )
    return rows


def bootstrap(rows: Rows, figure: Callable[[Rows], float], stratum: Callable[[dict[str, Any]], Any]) -> float:
    """The standard error of a figure, by drawing pictures anew within each stratum."""
    draw = np.random.default_rng(0)
    strata: dict[Any, dict[Any, Rows]] = {}
    for row in rows:
        strata.setdefault(stratum(row), {}).setdefault(row["cluster"], []).append(row)
    values = []
    for _ in range(300):
        sample: Rows = []
        for pictures in strata.values():
            groups = list(pictures.values())
            for copy, index in enumerate(draw.integers(0, len(groups), len(groups))):
                for row in groups[index]:
                    group = row["truth"].get("group")
                    truth = row["truth"] | ({"group": f"{copy} {group}"} if group else {})
                    sample.append(row | {"truth": truth})
        values.append(figure(sample))
    return float(np.std(values))


@pytest.mark.parametrize(
    ("metric", "make", "size", "within"),
    [
        ("choice_accuracy", lambda draw, n: choices(draw, 3 * n, 5), 200, False),
        ("subject_accuracy", lambda draw, n: choices(draw, 3 * n, 5), 200, False),
        ("mme", yes_or_no, 300, True),
        ("mmbench", rotations, 300, False),
    ],
)
def test_the_error_of_a_figure_is_that_of_a_bootstrap_over_pictures(
    metric: str, make: Callable[[np.random.Generator, int], Rows], size: int, within: bool
) -> None:
    rows = make(np.random.default_rng(1), size)
    benchmark = benchmark_of(metric)
    figure = figures_of(benchmark, rows)[metric]
    error = bootstrap(
        rows,
        lambda sample: benchmark.score(sample)[metric].aggregate,
        (lambda row: row["truth"]["category"]) if within else lambda row: 0,
    )
    assert figure.error == pytest.approx(error, rel=0.13)
    assert figure.value == pytest.approx(benchmark.score(rows)[metric].aggregate)
    assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high
    assert (figure.questions, figure.clusters) == (len(rows), len({row["cluster"] for row in rows}))


def test_sums_of_mme_and_its_subtasks_have_intervals() -> None:
    rows = yes_or_no(np.random.default_rng(2), 300)
    benchmark = benchmark_of("mme")
    figures = figures_of(benchmark, rows)["mme"].figures

    def perception(sample: Rows) -> float:
        return benchmark.score(sample)["mme"].figures["perception"]

    error = bootstrap(rows, perception, lambda row: row["truth"]["category"])
    assert figures["perception"].error == pytest.approx(error, rel=0.13)
    cognition, code = figures["cognition"], figures["code_reasoning"]
    assert (cognition.value, cognition.error) == pytest.approx((code.value, code.error))
    seen = sum(row["truth"]["category"] != "code_reasoning" for row in rows)
    assert (figures["perception"].questions, cognition.questions) == (seen, len(rows) - seen)
    assert figures["count_acc_plus"].error is None  # it is no mean of the values of questions


def test_all_right_answers_of_subjects_leave_a_doubt() -> None:
    rows = choices(np.random.default_rng(5), 60, 7, right=2.0)
    figure = figures_of(benchmark_of("subject_accuracy"), [row | {"prediction": "a"} for row in rows])
    main = figure["subject_accuracy"]
    assert main.value == main.high == 1.0 and main.low is not None and 0.7 < main.low < 1.0
    assert main.smallest is None


def test_one_question_is_no_evidence() -> None:
    rows = choices(np.random.default_rng(6), 1, 1)
    figure = figures_of(benchmark_of("choice_accuracy"), rows)["choice_accuracy"]
    assert (figure.low, figure.high, figure.error, figure.smallest) == (0.0, 1.0, None, None)


def test_the_figure_of_the_released_scripts_comes_with_its_reason() -> None:
    rows: Rows = [
        {"id": str(number), "prediction": answer, "truth": {"answers": ["100"]}}
        for number, answer in enumerate(["100", "105.1", "3"])
    ]
    figure = figures_of(benchmark_of("relaxed_accuracy"), rows)["relaxed_accuracy"]
    assert figure.value == pytest.approx(1 / 3)
    assert figure.upstream_exact is not None and figure.upstream_exact.value == pytest.approx(2 / 3)
    assert figure.reason == METRICS["relaxed_accuracy"].difference != ""
    assert figure.clusters == 3  # without pictures each question is its own


def test_the_clean_subset_is_named_by_source_and_record_or_by_question() -> None:
    rows = choices(np.random.default_rng(7), 30, 3)
    for row in rows:
        row["record"] = row["cluster"]
    clean = {"quiz/picture 0", "other/picture 1", "q29"}
    figure = figures_of(benchmark_of("choice_accuracy"), rows, clean)["choice_accuracy"]
    chosen = [*rows[:3], rows[29]]
    assert figure.questions == 30 and figure.clean is not None
    assert figure.clean == figures_of(benchmark_of("choice_accuracy"), chosen)["choice_accuracy"]
    none = figures_of(benchmark_of("choice_accuracy"), rows, {"other/picture 1"})["choice_accuracy"]
    assert none.clean is None


def test_lists_of_clean_samples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "clean.json"
    path.write_text('{"clean": ["quiz/1"], "touched": ["quiz/2"]}')
    assert read_clean(str(path)) == {"quiz/1"}
    path.write_text("[1]")
    with pytest.raises(UserError, match='has no list "clean"'):
        read_clean(str(path))


def test_hidden_benchmarks_and_empty_folders_have_no_figures() -> None:
    rows = choices(np.random.default_rng(8), 4, 1)
    assert figures_of(benchmark_of("choice_accuracy", hidden=True), rows) == {}
    assert figures_of(benchmark_of("choice_accuracy"), []) == {}
    assert compare(benchmark_of("choice_accuracy"), rows, []) == {}


def test_comparisons_pair_questions_by_id() -> None:
    draw = np.random.default_rng(9)
    rows = choices(draw, 120, 4)
    baseline = [row | {"prediction": "A" if draw.random() < 0.5 else "C"} for row in rows]
    shuffled = [baseline[number] for number in draw.permutation(120)]
    shuffled.append(rows[0] | {"id": "new"})
    del shuffled[shuffled.index(baseline[5])]
    shuffled[shuffled.index(baseline[7])] = baseline[7] | {"truth": {"answers": ["B"], "category": "subject 0"}}
    change = compare(benchmark_of("choice_accuracy"), rows, shuffled)["choice_accuracy"]
    common = [number for number in range(120) if number not in (5, 7)]
    expected = paired(
        [float(rows[number]["prediction"] == "A") for number in common],
        [float(baseline[number]["prediction"] == "A") for number in common],
        [rows[number]["cluster"] for number in common],
    )
    assert (change.questions, change.missing) == (118, 3)
    assert [change.value, change.low, change.p, change.smallest] == pytest.approx(
        [expected.value, expected.low, expected.p, expected.smallest]
    )


def test_further_figures_are_compared_like_a_benchmark_of_their_questions() -> None:
    draw = np.random.default_rng(10)
    rows = yes_or_no(draw, 70)
    baseline = [row | {"prediction": "no"} for row in rows]
    changes = compare(benchmark_of("mme"), rows, baseline)["mme"].figures
    code = [number for number, row in enumerate(rows) if row["truth"]["category"] == "code_reasoning"]
    alone = compare(benchmark_of("mme"), [rows[i] for i in code], [baseline[i] for i in code])["mme"]
    for name in ("cognition", "code_reasoning"):
        assert dataclasses.replace(changes[name], figures={}) == dataclasses.replace(alone, figures={})
    assert changes["cognition"].p is not None and changes["code_reasoning_acc"].p is None


def test_lost_records_count_as_average_questions_that_score_nothing() -> None:
    rows = choices(np.random.default_rng(11), 30, 2)
    whole = figures_of(benchmark_of("choice_accuracy"), rows)["choice_accuracy"]
    some = figures_of(benchmark_of("choice_accuracy"), rows, lost=10)["choice_accuracy"]
    assert (some.value, some.questions) == (pytest.approx(whole.value * 0.75), 40)
    assert some.low is not None and some.high is not None and some.low < some.value < some.high
    assert some.right == whole.right == whole.value * 30


def test_repeated_ids_are_paired_in_their_order() -> None:
    rows = choices(np.random.default_rng(14), 4, 1)
    for row in rows:
        row["id"] = "same"
    change = compare(benchmark_of("choice_accuracy"), rows, rows)["choice_accuracy"]
    assert (change.questions, change.missing, change.value) == (4, 0, 0.0)


def test_a_figure_of_the_whole_corpus_has_no_interval() -> None:
    rows: Rows = [
        {"id": str(number), "prediction": f"a dog number {number}", "truth": {"answers": ["a dog"]}}
        for number in range(3)
    ]
    figure = figures_of(benchmark_of("bleu_1"), rows)["bleu_1"]
    assert figure.value > 0 and figure.low is figure.error is None
    change = compare(benchmark_of("bleu_1"), rows, rows)["bleu_1"]
    assert (change.value, change.p) == (0.0, None)


def test_halves_of_a_benchmark_are_joined_with_intervals_and_p() -> None:
    draw = np.random.default_rng(13)
    halves = [choices(draw, count, 1) for count in (40, 70)]
    benchmark = benchmark_of("choice_accuracy")
    figures = [figures_of(benchmark, rows)["choice_accuracy"] for rows in halves]
    whole = joined(figures, (0.5, 0.5))
    parts = [
        estimate([float(row["prediction"] == "A") for row in rows], [row["cluster"] for row in rows]) for rows in halves
    ]
    expected = weighted_sum(parts, (0.5, 0.5))
    assert (whole.value, whole.error, whole.low) == pytest.approx((expected.value, expected.error, expected.low))
    assert (whole.questions, whole.right) == (110, figures[0].right + figures[1].right)  # type: ignore[operator]
    baselines = [[row | {"prediction": "A" if draw.random() < 0.5 else "B"} for row in rows] for rows in halves]
    pairs = zip(halves, baselines, strict=True)
    changes = [compare(benchmark, rows, baseline)["choice_accuracy"] for rows, baseline in pairs]
    change = joined_comparison(changes, (0.5, 0.5))
    first, second = (each.error for each in changes)
    assert first is not None and second is not None and change.p is not None
    assert change.error == pytest.approx(math.hypot(first, second) / 2)
    normal = 2 * stats.norm.sf(abs(change.value) / (math.hypot(first, second) / 2))
    assert normal < change.p < 1.2 * normal + 0.01


def test_seed_bench_has_intervals_for_images_and_videos() -> None:
    draw = np.random.default_rng(12)
    rows = choices(draw, 60, 3)
    for number, row in enumerate(rows):
        row["truth"] |= {"category": "Action Prediction" if number % 3 == 0 else "Visual Reasoning"}
    figure = figures_of(BENCHMARKS["seed_bench"], rows)["choice_accuracy"]
    for name, category in (("video", "Action Prediction"), ("image", "Visual Reasoning")):
        alone = [row for row in rows if row["truth"]["category"] == category]
        expected = figures_of(BENCHMARKS["seed_bench"], alone)["choice_accuracy"]
        assert dataclasses.replace(figure.figures[name], smallest=None) == dataclasses.replace(
            expected, figures={}, smallest=None, right=None
        )


def test_scores_of_a_judge_are_means_over_its_rounds() -> None:
    rounds = [[(6.0, 8.0), (5.0, 9.0)], [(3.0, 7.0)], [], [(9.0, 9.0), (10.0, 8.0)]]
    rows: Rows = [
        {"id": str(number), "truth": {"category": "a, b" if number else "a"}, "verdict": {"scores": scores}}
        for number, scores in enumerate(rounds)
    ]
    figure = figures_of(BENCHMARKS["touchstone_en"], rows)["touchstone"]
    assert figure.value == pytest.approx((6 + 5 + 3 + 9 + 10) / 5)
    assert figure.low is not None and figure.low < figure.value < (figure.high or 0) and figure.right is None
    of_b = figure.figures["b"]
    assert (of_b.value, of_b.questions) == (pytest.approx((3 + 9 + 10) / 3), 2) and of_b.low is not None


def test_equal_captions_that_score_nothing_are_no_certainty() -> None:
    rows: Rows = [{"id": str(n), "prediction": "x", "truth": {"answers": [f"a dog number {n}"]}} for n in range(5)]
    figure = figures_of(benchmark_of("cider"), rows)["cider"]
    assert (figure.value, figure.low, figure.high, figure.smallest) == (0.0, None, None, None)


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_answers_have_finite_figures_within_their_intervals(metric: str, data: st.DataObject) -> None:
    truth = "yes" if metric == "mme" else "A"
    answer = st.sampled_from([truth, "", "B", "(10,10),(500,500)", "\0", "a b c d e", "1e999"])
    category = st.sampled_from(["OCR", "subject", ""])
    rows: Rows = []
    for number in range(data.draw(st.integers(1, 8))):
        about: dict[str, Any] = {
            "answers": (truth,),
            "box": (1.0, 1.0, 50.0, 50.0),
            "size": (100.0, 100.0),
            "options": ("net", "cat"),
        }
        about |= {"category": data.draw(category), "group": str(number // 2)}
        cluster = data.draw(st.integers(0, 3))
        rows.append({"id": str(number), "cluster": cluster, "prediction": data.draw(answer), "truth": about})
    figures = figures_of(benchmark_of(metric), rows, clean={"0", "2"}, lost=data.draw(st.integers(0, 2)))
    changes = compare(benchmark_of(metric), rows, [row | {"prediction": data.draw(answer)} for row in rows])
    everything: list[Figure | Comparison] = [*figures.values(), *figures[metric].figures.values(), *changes.values()]
    json.dumps([dataclasses.asdict(each) for each in everything], allow_nan=False)
    for each in everything:
        if each.low is not None and each.high is not None:
            assert each.low - 1e-9 <= each.value <= each.high + 1e-9
