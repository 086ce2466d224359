"""The interface that all metrics share, and the metrics without a golden file."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import shapely

from qwenvl_jax.evaluation.metrics import multiple_choice
from qwenvl_jax.evaluation.metrics.grounding import intersection_over_union
from qwenvl_jax.evaluation.metrics.metric import VARIANTS, Metric, Truth
from qwenvl_jax.evaluation.metrics.mme import mme, yes_or_no
from qwenvl_jax.evaluation.metrics.registry import METRICS
from qwenvl_jax.runtime.errors import UserError

ANSWERS = ["yes", "A", "0.5", "caf\u00e9", "(10,10),(500,500)", ""]


def truth(number: int) -> Truth:
    """A truth that every metric can read."""
    return Truth(
        answers=("yes" if number % 2 else "no",),
        box=(1.0, 1.0, 50.0, 50.0),
        size=(100.0, 100.0),
        group=f"{number // 2}",
        category=f"subject {number % 3}",
        options=("yes", "no"),
    )


def test_names_are_keys_and_a_second_variant_says_why_it_differs() -> None:
    assert all(metric.name == name for name, metric in METRICS.items())
    assert all(bool(metric.difference) == (metric.upstream_exact is not None) for metric in METRICS.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_aggregate_is_the_weighted_sum_of_the_values(metric: Metric, variant: str) -> None:
    truths = [truth(number) for number in range(len(ANSWERS))]
    if metric.name == "mmbench":
        truths = [dataclasses.replace(one, answers=("A",)) for one in truths]
    scores = metric.score(ANSWERS, truths, variant)
    assert len(scores.per_question) == len(ANSWERS)
    assert all(math.isfinite(value) for value in scores.per_question)
    if scores.weights is not None:
        products = [value * weight for value, weight in zip(scores.per_question, scores.weights, strict=True)]
        assert sum(products) == pytest.approx(scores.aggregate)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_wrong_call_is_refused(metric: Metric) -> None:
    with pytest.raises(UserError, match="2 answers for 1 truths"):
        metric.score(["a", "b"], [truth(0)])
    with pytest.raises(UserError, match="no answers"):
        metric.score([], [])
    with pytest.raises(UserError, match="use one of official, upstream_exact"):
        metric.score(["a"], [truth(0)], "exact")
    with pytest.raises(UserError):
        metric.score(["a"], [Truth()])


@pytest.mark.parametrize("name", ["exact_match", "vqa_accuracy", "anls", "relaxed_accuracy", "gqa_accuracy"])
def test_the_two_unicode_forms_of_a_letter_are_equal(name: str) -> None:
    scores = METRICS[name].score(["cafe\u0301"], [Truth(answers=("caf\u00e9",) * 10)])
    assert scores.aggregate == 1.0


@pytest.mark.parametrize(
    "name,answer,answers,official,upstream",
    [
        # The released evaluator leaves the comma in answers that all agree.
        ("vqa_accuracy", "red, blue", ["red, blue"] * 10, 1.0, 0.0),
        ("vqa_accuracy", "Dog", ["Dog"] * 10, 1.0, 0.0),
        # Blanks at the end lengthen the text, so that an edit counts less.
        ("anls", "dig      ", ["dog"], 2 / 3, 8 / 9),
        ("anls", "dig", ["dog"], 2 / 3, 2 / 3),
        ("anls", "ab", ["ax"], 0.0, 0.5),
        # 105.1 is 5.1 % more than 100, but 100 is 4.9 % less than 105.1.
        ("relaxed_accuracy", "105.1", ["100"], 0.0, 1.0),
        ("relaxed_accuracy", "0", ["0.0"], 1.0, 0.0),
        ("relaxed_accuracy", "50%", ["0.5"], 1.0, 1.0),
        ("relaxed_accuracy", "inf", ["INF"], 1.0, 0.0),
        ("relaxed_accuracy", "1,000", ["1000"], 0.0, 0.0),
        ("gqa_accuracy", "it is red.", ["red"], 0.0, 1.0),
        ("gqa_accuracy", "panda bear", ["panda bear"], 1.0, 0.0),
    ],
)
def test_the_variants_differ_as_documented(
    name: str, answer: str, answers: list[str], official: float, upstream: float
) -> None:
    truths = [Truth(answers=tuple(answers))]
    assert METRICS[name].score([answer], truths).aggregate == pytest.approx(official)
    assert METRICS[name].score([answer], truths, "upstream_exact").aggregate == pytest.approx(upstream)


@pytest.mark.parametrize(
    "answer,expected",
    [
        ("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), ("not", "no"), ("I know", "other"), (" no", "no"),
        ("eyes", "yes"), ("", "other"), ("It is", "other"), ("N/A", "other"),
    ],
)  # fmt: skip
def test_yes_or_no_is_looked_for_in_four_characters(answer: str, expected: str) -> None:
    assert yes_or_no(answer) == expected


def test_mme_of_the_paper_reaches_2000_and_800() -> None:
    from qwenvl_jax.evaluation.metrics.mme import COGNITION, PERCEPTION

    truths = [
        Truth(answers=(true,), group="1.jpg", category=name)
        for name in PERCEPTION + COGNITION
        for true in ("Yes", "No")
    ]
    figures = mme([true.answers[0] for true in truths], truths).figures
    assert (figures["perception"], figures["cognition"]) == (2000, 800)


def test_boxes_overlap_as_in_shapely() -> None:
    draw = random.Random(0)
    for _ in range(5000):
        corners = [draw.choice((draw.uniform(0, 100), float(draw.randint(0, 10)))) for _ in range(8)]
        first, second = (sorted(corners[k : k + 4 : 2]) + sorted(corners[k + 1 : k + 4 : 2]) for k in (0, 4))
        first, second = ([box[0], box[2], box[1], box[3]] for box in (first, second))
        union = shapely.union(shapely.box(*first), shapely.box(*second)).area
        common = shapely.intersection(shapely.box(*first), shapely.box(*second)).area
        expected = common / union if union else 0.0
        assert intersection_over_union(first, second) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "name,variant,answer,expected",
    [
        ("iou_accuracy", "official", "(0,0),(500,500)", 1.0),
        ("iou_accuracy", "official", "(0,0),(500,1000)", 1.0),  # exactly half of the union
        ("grit_accuracy", "official", "(0,0),(500,1000)", 0.0),  # more than half is asked for
        ("iou_accuracy", "official", "(0,0),(10,10)</box><box>(0,0),(500,500)", 0.0),  # the first box counts
        ("iou_accuracy", "official", "no box", 0.0),
        ("iou_accuracy", "official", "(500,500),(0,0)", 0.0),
        # 707 / 1000 squared is 0.4998, 707 / 999 squared is 0.5008.
        ("iou_accuracy", "official", "(0,0),(707,707)", 0.0),
        ("iou_accuracy", "upstream_exact", "(0,0),(707,707)", 1.0),
    ],
)
def test_the_first_box_counts(name: str, variant: str, answer: str, expected: float) -> None:
    box = (0.0, 0.0, 200.0, 100.0) if "1000" in answer or "707" in answer else (0.0, 0.0, 100.0, 50.0)
    scores = METRICS[name].score([answer], [Truth(box=box, size=(200.0, 100.0))], variant)
    assert scores.aggregate == expected


def test_micro_accuracy_counts_questions_and_macro_accuracy_subjects() -> None:
    answers = ["A", " b ", "C", "D", ""]
    truths = [
        Truth(answers=("A",), category="law"),
        Truth(answers=("B",), category="law"),
        Truth(answers=("C",), category="law"),
        Truth(answers=("A",), category="art"),
        Truth(answers=("A",), category="art"),
    ]
    micro = METRICS["choice_accuracy"].score(answers, truths)
    macro = METRICS["subject_accuracy"].score(answers, truths)
    assert micro.aggregate == 3 / 5
    assert macro.aggregate == 1 / 2
    assert micro.figures == macro.figures == {"law": 1.0, "art": 0.0}
    assert micro.per_question == macro.per_question == (1.0, 1.0, 1.0, 0.0, 0.0)


def test_the_vote_of_mmbench_is_about_texts_not_letters() -> None:
    truths = [
        Truth(answers=("A",), options=("red", "blue"), group="1"),
        Truth(answers=("B",), options=("blue", "red"), group="1"),
        Truth(answers=("A",), options=("red", "blue"), group="1"),
    ]
    answers = ["A", "A", "A"]  # red, blue, red
    assert METRICS["mmbench"].score(answers, truths).aggregate == 0.0
    assert METRICS["mmbench"].score(answers, truths, "upstream_exact").aggregate == 1.0
    assert multiple_choice.constrained_answers(answers, truths) == ["A", "B", "A"]
    assert multiple_choice.constrained_answers(["", "?", "E"], truths) == ["", "?", "E"]
    assert METRICS["mmbench"].score(["", "?", "E"], truths, "upstream_exact").aggregate == 0.0
