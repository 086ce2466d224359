"""Intervals and p-values over many simulated benchmarks: how often they are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.results.figures import Figure, compare, figures_of

Rows = list[dict[str, Any]]
Draw = np.random.Generator
SIMULATIONS = 600
SUBJECTS = ((0.9, 30), (0.7, 60), (0.5, 25), (0.3, 45))  # ease and pictures of each


def subjects(draw: Draw) -> Rows:
    """Subjects of fixed sizes."""
    rows: Rows = []
    for subject, (_, pictures) in enumerate(SUBJECTS):
        for picture in range(pictures):
            rows += about_picture(draw, subject, f"{subject}/{picture}")
    return rows


def mixed(draw: Draw) -> Rows:
    """Pictures of subjects that are drawn, too, so that their shares vary."""
    rows: Rows = []
    for picture in range(160):
        rows += about_picture(draw, int(draw.integers(len(SUBJECTS))), str(picture))
    return rows


def about_picture(draw: Draw, subject: int, picture: str) -> Rows:
    """One to five questions about a picture; pictures differ in ease, and subjects in ease and size."""
    chance = float(np.clip(SUBJECTS[subject][0] + draw.normal(0, 0.15), 0, 1))
    return [
        {
            "id": f"{picture}/{number}",
            "cluster": picture,
            "prediction": "A" if draw.random() < chance else "B",
            "truth": {"answers": ["A"], "category": f"subject {subject}"},
        }
        for number in range(int(draw.integers(1, 6)))
    ]


def pairs(draw: Draw) -> Rows:
    """MME: a "yes" and a "no" about each picture, in subtasks of its sizes."""
    rows: Rows = []
    for subtask, pictures in (("existence", 30), ("count", 30), ("scene", 60), ("code_reasoning", 20)):
        for picture in range(pictures):
            chance = float(np.clip(draw.normal(0.75, 0.15), 0, 1))
            for truth, other in (("yes", "no"), ("no", "yes")):
                name = f"{subtask}/{picture}"
                prediction = truth if draw.random() < chance else other
                about = {"answers": [truth], "category": subtask, "group": name}
                rows.append({"id": f"{name}{truth}", "cluster": name, "prediction": prediction, "truth": about})
    return rows


def rotations(draw: Draw) -> Rows:
    """MMBench: two to four rotations of each of 150 questions; two questions share a picture."""
    rows: Rows = []
    for question in range(150):
        if question % 2 == 0:
            chance = float(np.clip(draw.normal(0.8, 0.2), 0, 1))
        for turn in range(int(draw.integers(2, 5))):
            about = {"answers": ["A"], "group": str(question), "options": ["net", "cat"]}
            prediction = "A" if draw.random() < chance else "B"
            row = {"id": f"{question}.{turn}", "cluster": question // 2, "prediction": prediction, "truth": about}
            rows.append(row)
    return rows


CASES = {
    "choice over all questions": ("scienceqa_img_test", mixed, lambda figure: figure),
    "mean over subjects": ("ceval_val", subjects, lambda figure: figure),
    "one subject": ("scienceqa_img_test", mixed, lambda figure: figure.figures["subject 2"]),
    "sum of MME": ("mme", pairs, lambda figure: figure),
    "perception of MME": ("mme", pairs, lambda figure: figure.figures["perception"]),
    "rotations of MMBench": ("mmbench_dev", rotations, lambda figure: figure),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_intervals_contain_the_truth_in_93_to_97_of_100_benchmarks(case: str) -> None:
    name, make, choose = CASES[case]
    figures: list[Figure] = []
    draw = np.random.default_rng(0)
    for _ in range(SIMULATIONS):
        figures.append(choose(next(iter(figures_of(BENCHMARKS[name], make(draw)).values()))))
    truth = float(np.mean([figure.value for figure in figures]))  # its own error is a thirtieth of an interval
    inside = [figure.low <= truth <= figure.high for figure in figures if figure.low is not None and figure.high]
    assert len(inside) == SIMULATIONS
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), [("ceval_val", subjects), ("mme", pairs), ("mmbench_dev", rotations)])
def test_equal_models_differ_significantly_in_5_of_100_comparisons(name: str, make: Callable[[Draw], Rows]) -> None:
    """Two models with the same chances on the same pictures: half of the answers are drawn anew."""
    draw = np.random.default_rng(1)
    significant = []
    for _ in range(SIMULATIONS):
        first = make(draw)
        second = [row | {"prediction": _other(row, draw)} for row in first]
        swap = draw.random(len(first)) < 0.5  # which model gave which answer is chance, so neither is better
        ours = [b if s else a for a, b, s in zip(first, second, swap, strict=True)]
        theirs = [a if s else b for a, b, s in zip(first, second, swap, strict=True)]
        change = next(iter(compare(BENCHMARKS[name], ours, theirs).values()))
        assert change.p is not None
        significant.append(change.p < 0.05)
    assert 0.03 <= np.mean(significant) <= 0.07


def _other(row: dict[str, Any], draw: Draw) -> str:
    """Another answer in one of five cases."""
    if draw.random() < 0.8:
        return row["prediction"]
    wrong = {"A": "B", "yes": "no", "no": "yes"}[row["truth"]["answers"][0]]
    return row["truth"]["answers"][0] if row["prediction"] == wrong else wrong
