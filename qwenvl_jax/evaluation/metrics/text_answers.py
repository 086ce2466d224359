"""Scores of one short answer against the annotated ones: ANLS, relaxed accuracy, exact match, GQA.

Sources: ANLS, Biten et al. 2019 (arXiv 1905.13648); relaxed accuracy, Methani et al. 2020 (arXiv 1909.00997) and Masry
et al. 2022 (arXiv 2203.10244); the released evaluate_vqa.py and infographicsvqa_eval.py.
"""

from __future__ import annotations

import math

from rapidfuzz.distance import Levenshtein

from qwenvl_jax.evaluation.metrics.metric import Truth, required_answers

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05

# The released GQA post-processing: where a text is cut, and which part of it remains.
_GQA_ENDS = (".", ",", "!")
_GQA_CUTS = (("is ", 1), ("are ", 1), ("a ", 1), ("an ", 1), ("the ", 1), (" of", 0))


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def anls(answer: str, truth: Truth) -> float:
    """1 - edits / length of the longer text, of the nearest true answer; 0 unless that is over 0.5.

    Case and the amount of white space do not count.
    """
    best = 0.0
    for true in required_answers(truth):
        first = _folded(answer)
        second = _folded(true)
        longer = max(len(first), len(second))
        best = max(best, 1.0 - Levenshtein.distance(first, second) / longer if longer else 1.0)
    return best if best > ANLS_THRESHOLD else 0.0


def anls_upstream(answer: str, truth: Truth) -> float:
    """As `anls`, but the length is that of the texts as given, so that blanks at the end raise the score.

    They are measured in capitals (ß is two letters then), and a similarity of 0.5 counts.
    """
    best = 0.0
    for true in required_answers(truth):
        longer = max(len(answer.upper()), len(true.upper()))
        edits = Levenshtein.distance(_folded(answer), _folded(true))
        best = max(best, 1.0 - edits / longer if longer else 1.0)
    return best if best >= ANLS_THRESHOLD else 0.0


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _near(value: float, reference: float) -> bool:
    return abs(value - reference) <= RELAXED_TOLERANCE * abs(reference)


def relaxed_accuracy(answer: str, truth: Truth) -> float:
    """1.0 if the answer is within 5 % of a true number, or equals a true text whatever the case.

    A text that ends with % is a hundredth. A number with a unit or a thousands comma is a text. Of a true zero nothing
    but zero is within 5 %.
    """
    return float(any(_relaxed(answer.strip(), true.strip()) for true in required_answers(truth)))


def _relaxed(answer: str, true: str) -> bool:
    value = _number(answer)
    reference = _number(true)
    if value is None or reference is None:
        return answer.lower() == true.lower()
    return _near(value, reference)


def relaxed_accuracy_upstream(answer: str, truth: Truth) -> float:
    """As `relaxed_accuracy`, but within 5 % of the number of the *answer*; an answer of zero is a text."""
    return float(any(_relaxed_upstream(answer.strip(), true) for true in required_answers(truth)))


def _relaxed_upstream(answer: str, true: str) -> bool:
    value = _number_upstream(answer)
    reference = _number_upstream(true)
    if reference is None or not value:
        return answer.lower() == true.lower()
    return abs(reference - value) / abs(value) <= RELAXED_TOLERANCE


def _number_upstream(text: str) -> float | None:
    # Infinities and NaN are numbers there.
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def exact_match(answer: str, truth: Truth) -> float:
    """1.0 if the answer equals any true answer; case and surrounding white space do not count."""
    folded = answer.strip().lower()
    return float(any(folded == true.strip().lower() for true in required_answers(truth)))


def gqa_upstream(answer: str, truth: Truth) -> float:
    """`exact_match` of the part of the answer that the released post-processing leaves.

    It cuts at characters, not at words: "sofa on" becomes "on", because it contains "a ".
    """
    text = answer.strip()
    for end in _GQA_ENDS:
        text = text.split(end)[0]
    text = text.lower()
    for cut, part in _GQA_CUTS:
        if cut in text:
            text = text.split(cut)[part]
    return exact_match(text.strip(), truth)
