"""Metrics against the scores that the official and the released code give to 5,000 drawn cases each.

Every golden file names its source. Its scores come from that package, or from a transcription of that code's scoring
functions, on the cases of `tests.support.metric_cases`. Neither is part of this repository. Texts were brought into the
normal form first.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.evaluation.metrics import multiple_choice
from qwenvl_jax.evaluation.metrics.metric import Truth
from qwenvl_jax.evaluation.metrics.registry import METRICS
from tests.support import metric_cases

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
Case = tuple[str, list[str]]


def golden(name: str, cases: Any) -> dict[str, Any]:
    values = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(repr(cases).encode()).hexdigest() == values["cases"], "the cases are no longer those"
    return values


@pytest.mark.parametrize(
    "name,variant,make",
    [
        ("vqa_accuracy", "official", metric_cases.annotators),
        ("vqa_accuracy", "upstream_exact", metric_cases.annotators),
        ("relaxed_accuracy", "upstream_exact", metric_cases.numbers),
        ("gqa_accuracy", "upstream_exact", metric_cases.gqa),
        ("exact_match", "official", metric_cases.annotators),
        ("anls", "upstream_exact", metric_cases.similar),
    ],
)
def test_every_score_is_that_of_the_source(name: str, variant: str, make: Callable[[random.Random], Case]) -> None:
    draw = random.Random(f"{name} {variant}")
    cases = [make(draw) for _ in range(5000)]
    values = golden(f"{name}_{variant}", cases)
    truths = [Truth(answers=tuple(answers)) for _, answers in cases]
    scores = METRICS[name].score([answer for answer, _ in cases], truths, variant)
    assert [round(values["scale"] * score) for score in scores.per_question] == values["scores"]
    assert len(set(values["scores"])) > 1


def test_anls_is_that_of_the_package_unless_a_capital_is_two_letters() -> None:
    """The package measures texts in capitals, where \u00df is two letters."""
    draw = random.Random("anls official")
    cases = [metric_cases.similar(draw) for _ in range(5000)]
    values = golden("anls_official", cases)
    scores = METRICS["anls"].score([answer for answer, _ in cases], [Truth(answers=tuple(true)) for _, true in cases])
    compared = 0
    for (answer, true), score, expected in zip(cases, scores.per_question, values["scores"], strict=True):
        if all(len(text.lower()) == len(text.lower().upper()) for text in (answer, *true)):
            compared += 1
            assert round(values["scale"] * score) == expected
    assert compared > 3000


def test_relaxed_accuracy_is_that_of_the_source_unless_the_truth_is_zero() -> None:
    """The source takes a true zero for a text, so that "0.0" is wrong; infinity and NaN are numbers there."""
    draw = random.Random("relaxed_accuracy official")
    cases = [metric_cases.numbers(draw) for _ in range(5000)]
    values = golden("relaxed_accuracy_official", cases)
    truths = [Truth(answers=tuple(answers)) for _, answers in cases]
    scores = METRICS["relaxed_accuracy"].score([answer for answer, _ in cases], truths)
    differing = [
        answers
        for (_, answers), score, expected in zip(cases, scores.per_question, values["scores"], strict=True)
        if score != expected
    ]
    zeros_and_more = ("0", "-0", "0.0", "0.00", "0%", "0.000000e+00", "-0.00", "0 ", "inf", "nan")
    assert all(any(true.strip().lower() in zeros_and_more for true in answers) for answers in differing)
    assert 0 < len(differing) < 500


def test_mme_gives_the_sums_of_the_source() -> None:
    draw = random.Random("mme")
    cases = [metric_cases.mme(draw) for _ in range(150)]
    values = golden("mme", cases)
    for rows, (perception, cognition) in zip(cases, values["scores"], strict=True):
        truths = [Truth(answers=(true,), group=image, category=subtask) for _, true, image, subtask in rows]
        scores = METRICS["mme"].score([row[0] for row in rows], truths)
        assert scores.figures["perception"] * values["scale"] == pytest.approx(perception, abs=0.51)
        assert scores.figures["cognition"] * values["scale"] == pytest.approx(cognition, abs=0.51)
        assert scores.aggregate == pytest.approx(scores.figures["perception"] + scores.figures["cognition"])


def test_mmbench_gives_the_verdicts_of_the_sources() -> None:
    draw = random.Random("mmbench")
    cases = [metric_cases.rotations(draw) for _ in range(5000)]
    values = golden("mmbench", cases)
    for number, (answers, letters, rotated) in enumerate(cases):
        truths = [
            Truth(answers=(letter,), options=options, group="q")
            for letter, options in zip(letters, rotated, strict=True)
        ]
        assert multiple_choice.circular_accuracy(answers, truths).aggregate == values["circular"][number]
        if values["voted"][number] >= 0:
            assert multiple_choice.voted_accuracy(answers, truths).aggregate == values["voted"][number]
            assert "".join(multiple_choice.constrained_answers(answers, truths)) == values["constrained"][number]
