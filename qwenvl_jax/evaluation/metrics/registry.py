"""All metrics by name."""

from __future__ import annotations

import functools

from qwenvl_jax.evaluation.metrics import grounding, mme, multiple_choice, text_answers, vqa
from qwenvl_jax.evaluation.metrics.cider import bleu_rule, cider_rule, rouge_l_rule
from qwenvl_jax.evaluation.metrics.metric import Metric, Truth, each


def _vqa(answer: str, truth: Truth) -> float:
    return vqa.vqa_accuracy(answer, truth.answers)


def _vqa_upstream(answer: str, truth: Truth) -> float:
    return vqa.vqa_score(answer, truth.answers)


_in_thousandths = functools.partial(grounding.box_is_right, denominator=1000)
_in_released_units = functools.partial(grounding.box_is_right, denominator=grounding.COORDINATE_SCALE)
_SCALE = "the released script divides coordinates by 999, although training writes thousandths"

_METRICS = (
    Metric("cider", cider_rule("ptb")),
    Metric("cider_simple", cider_rule("simple")),
    *(Metric(f"bleu_{order}", bleu_rule(order)) for order in range(1, 5)),
    Metric("rouge_l", rouge_l_rule),
    Metric(
        "vqa_accuracy",
        each(_vqa),
        each(_vqa_upstream),
        "the released evaluator normalises the prediction fully, but the annotated answers only in part, and not "
        "at all if they are equal",
    ),
    Metric(
        "anls",
        each(text_answers.anls),
        each(text_answers.anls_upstream),
        "the released script divides the edits of the normalised texts by the length of the texts as given",
    ),
    Metric(
        "relaxed_accuracy",
        each(text_answers.relaxed_accuracy),
        each(text_answers.relaxed_accuracy_upstream),
        "the released script swaps answer and truth, so the tolerance is 5 % of the answer",
    ),
    Metric("exact_match", each(text_answers.exact_match)),
    Metric(
        "gqa_accuracy",
        each(text_answers.exact_match),
        each(text_answers.gqa_upstream),
        "the released script cuts the answer at parts of words before it compares",
    ),
    Metric("iou_accuracy", each(_in_thousandths), each(_in_released_units), _SCALE),
    Metric(
        "grit_accuracy",
        each(functools.partial(_in_thousandths, strict=True)),
        each(functools.partial(_in_released_units, strict=True)),
        _SCALE,
    ),
    Metric("mme", mme.mme, unit=1.0),
    Metric(
        "mmbench",
        multiple_choice.circular_accuracy,
        multiple_choice.voted_accuracy,
        "the released `tricky` script counts the majority of the rotations instead of all",
    ),
    Metric("choice_accuracy", multiple_choice.micro_accuracy),
    Metric("subject_accuracy", multiple_choice.macro_accuracy),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
