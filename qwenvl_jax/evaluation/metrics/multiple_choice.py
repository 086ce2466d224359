"""Scores of multiple choice: micro and macro accuracy, and MMBench over the rotations of a question.

An answer is the letter of an option. Sources: the leaderboards of SEED-Bench, MMLU (Hendrycks et al. 2020), C-Eval,
CMMLU; MMBench (arXiv 2307.06281) and the released mmbench scripts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from qwenvl_jax.evaluation.metrics.metric import (
    Scores,
    Truth,
    mean_scores,
    required_answers,
    weights_of_parts,
)
from qwenvl_jax.runtime.errors import UserError

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _letter(answer: str) -> str:
    """The option that an answer names: its letter, whatever the case, with white space around it."""
    return answer.strip().upper()


def is_right(answer: str, truth: Truth) -> float:
    """1.0 if the answer is the letter of the right option, else 0.0."""
    return float(_letter(answer) == _letter(required_answers(truth)[0]))


def _means(values: Sequence[float], parts: Sequence[str]) -> dict[str, float]:
    """The mean of the values of each part."""
    members: dict[str, list[float]] = {}
    for value, part in zip(values, parts, strict=True):
        members.setdefault(part, []).append(value)
    return {part: sum(group) / len(group) for part, group in members.items()}


def micro_accuracy(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
    """The share of right answers over all questions (SEED-Bench, MMLU, ScienceQA); `figures` has it per category."""
    values = [is_right(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    parts = [truth.category for truth in truths]
    scores = mean_scores(values, _means(values, parts))
    return dataclasses.replace(scores, figure_weights=weights_of_parts(parts))


def macro_accuracy(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
    """The mean over categories of their shares of right answers (C-Eval, CMMLU: every subject counts the same)."""
    values = [is_right(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    parts = tuple(truth.category for truth in truths)
    sizes = collections.Counter(parts)
    figures = _means(values, parts)
    weights = tuple(1 / (len(sizes) * sizes[part]) for part in parts)
    mean = sum(figures.values()) / len(figures)
    return Scores(mean, tuple(values), weights, figures, weights_of_parts(parts), parts)


def _groups(truths: Sequence[Truth]) -> list[list[int]]:
    """The numbers of the questions of each group; a question without a group is one of its own."""
    members: dict[object, list[int]] = {}
    for number, truth in enumerate(truths):
        members.setdefault(truth.group or number, []).append(number)
    return list(members.values())


def _scores_of_groups(groups: list[list[int]], right: Sequence[float], count: int) -> Scores:
    values = [0.0] * count
    weights = [0.0] * count
    for group, value in zip(groups, right, strict=True):
        for number in group:
            values[number] = value
            weights[number] = 1 / (len(groups) * len(group))
    return Scores(sum(right) / len(right), tuple(values), tuple(weights))


def circular_accuracy(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
    """The share of questions of which every rotation is answered rightly (MMBench). Rotations share a `Truth.group`."""
    groups = _groups(truths)
    right = [float(all(is_right(answers[number], truths[number]) for number in group)) for group in groups]
    return _scores_of_groups(groups, right, len(answers))


def _option(answer: str, truth: Truth) -> str | None:
    index = _LETTERS.find(_letter(answer)) if len(_letter(answer)) == 1 else -1
    return truth.options[index] if 0 <= index < len(truth.options) else None


def _vote(answers: Sequence[str], truths: Sequence[Truth], group: list[int]) -> str | None:
    """The text that most rotations chose; of several, the one that was chosen first. None if no answer is an option."""
    if not all(truths[number].options for number in group):
        raise UserError("the vote of MMBench compares the texts of options; give the options of every question")
    chosen = [_option(answers[number], truths[number]) for number in group]
    counts = collections.Counter(text for text in chosen if text is not None)
    return counts.most_common(1)[0][0] if counts else None


def voted_accuracy(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
    """The share of questions of which the rotations together choose the right text (mmbench_evaluation_tricky.py).

    The released script draws among texts with equally many votes; here the text that was chosen first wins, so that the
    figure does not change between runs.
    """
    groups = _groups(truths)
    right = []
    for group in groups:
        last = truths[group[-1]]
        right.append(float(_vote(answers, truths, group) == _option(required_answers(last)[0], last)))
    return _scores_of_groups(groups, right, len(answers))


def constrained_answers(answers: Sequence[str], truths: Sequence[Truth]) -> list[str]:
    """The letters to submit if every rotation has to choose the text of the vote (mmbench_predict_to_submission.py).

    Answers of a group in which no answer is an option stay as they are.
    """
    letters = list(answers)
    for group in _groups(truths):
        text = _vote(answers, truths, group)
        for number in group:
            if text is not None and text in truths[number].options:
                letters[number] = _LETTERS[truths[number].options.index(text)]
    return letters
