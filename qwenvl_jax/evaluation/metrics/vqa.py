"""Scores of short answers: the VQA evaluator as its server and as the released script run it, and plain accuracy.

`vqa_score` and `exact_accuracy` follow the released scripts, quirks included, because published figures contain these
quirks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwenvl_jax.runtime.errors import UserError

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The released pattern: a look-ahead that can never fail and a digit that must not follow.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
# The released call passes a flag where the number of substitutions belongs, so it stops after re.UNICODE = 32.
_PERIODS_REMOVED = 32

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")

# Contractions that are restored from every spelling that lacks one apostrophe. The evaluator's list has no forms whose
# bare spelling is another word (she'd, we'd, she'll, let's, ...), so they are missing here as well.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {
        word[:index] + word[index + 1 :]: word
        for word in _CONTRACTED.split()
        for index, letter in enumerate(word)
        if letter == "'"
    }
    table["somebody'd"] = "somebodyd"  # the evaluator has this pair the wrong way round
    return table


_CONTRACTIONS = _contractions()


def strip_punctuation(text: str) -> str:
    """The evaluator's punctuation step: each mark is dropped or becomes a space, depending on its neighbours."""
    result = text
    glued = _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in _PUNCTUATION:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if next_to_space or glued else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def normalise_words(text: str) -> str:
    """The evaluator's word step: lower case, number words to digits, articles dropped, apostrophes restored."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """One question by the classic evaluator (released vqa_eval.py): mean over annotators of min(1, others/3).

    The prediction is normalised fully; the answers only lose punctuation, and only if the annotators disagree.

    Args:
      prediction: the model's answer.
      answers: one answer per annotator (ten in VQAv2).

    Returns:
      A value in [0, 1].

    Raises:
      UserError: if there are no answers.
    """
    if not answers:
        raise UserError("a question without any annotated answer cannot be scored; add its answers")
    normalised = _normalised(prediction)
    truths = [strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    matches = [truth == normalised for truth in truths]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(truths)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """One question by the rule of the VQAv2 server: mean over annotators of min(1, others who agree / 3).

    The prediction and all answers are normalised in the same way. An annotator is compared with all others, by number,
    so that annotators who gave the same answer never vanish together.

    Raises:
      UserError: if there are no answers.
    """
    if not answers:
        raise UserError("a question without any annotated answer cannot be scored; add its answers")
    normalised = _normalised(prediction)
    matches = [_normalised(answer) == normalised for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def _normalised(text: str) -> str:
    return normalise_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def exact_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals any answer after stripping and lower-casing (released `accuracy`), else 0.0."""
    return float(prediction.strip().lower() in {answer.strip().lower() for answer in answers})
