"""Tokens of captions, and CIDEr, BLEU and ROUGE-L of captions as texts.

The figures depend on how captions are split. Two tokenisations:

  "ptb"     the default: as the official COCO and Nocaps evaluation (Stanford's PTBTokenizer), for English. No Java.
  "simple"  lower case, words and single CJK characters, no punctuation; for Chinese.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

from qwenvl_jax.evaluation.metrics import captions
from qwenvl_jax.evaluation.metrics.metric import Rule, Scores, Truth, mean_scores
from qwenvl_jax.evaluation.metrics.ptb import tokenizer
from qwenvl_jax.runtime.errors import UserError

# One CJK character is one token (Chinese has no spaces); otherwise a word with inner apostrophes or hyphens.
_TOKEN = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_぀-ヿ㐀-鿿豈-﫿]+(?:['’-][^\W_]+)*")


def simple_tokens(text: str) -> str:
    """The tokens of `text` joined by single spaces ("simple" tokenisation)."""
    return " ".join(_TOKEN.findall(text.lower()))


@functools.lru_cache(maxsize=65_536)
def ptb_tokens(text: str) -> str:
    """The tokens of `text` joined by single spaces ("ptb" tokenisation), as pycocoevalcap hands them to its scorers."""
    return " ".join(tokenizer.tokens(text))


_TOKENS: dict[str, Callable[[str], str]] = {"ptb": ptb_tokens, "simple": simple_tokens}
TOKENISATIONS = tuple(_TOKENS)


def _checked(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenisation: str) -> None:
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} captions were given for {len(references)} images; give one for each")
    if not predictions or not all(references):
        raise UserError("a score of captions needs at least one image, and a reference for every image")
    if tokenisation not in _TOKENS:
        raise UserError(f"the tokenisation {tokenisation!r} is not one of {', '.join(TOKENISATIONS)}")


def cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenisation: str = "ptb"
) -> tuple[float, list[float]]:
    """CIDEr-D over a corpus (`captions.cider_d`). A value of 1.0 is printed as 100 in papers.

    Args:
      predictions: one caption per image.
      references: one or more captions per image.
      tokenisation: one of TOKENISATIONS.

    Returns:
      The mean over the images, and the value of each image.

    Raises:
      UserError: if the two differ in length or are empty, an image has no reference, or the tokenisation is unknown.
    """
    _checked(predictions, references, tokenisation)
    # CIDEr and BLEU split at every white space, so a no-break space within a PTB token separates words there.
    words = [_TOKENS[tokenisation](text).split() for text in predictions]
    return captions.cider_d(words, [[_TOKENS[tokenisation](text).split() for text in group] for group in references])


def cider_rule(tokenisation: str) -> Rule:
    """CIDEr-D with a tokenisation as the rule of a metric."""

    def rule(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
        _, each = cider(answers, [truth.answers for truth in truths], tokenisation=tokenisation)
        return dataclasses.replace(mean_scores(each), bounded=False)

    return rule


def bleu_rule(order: int) -> Rule:
    """BLEU with n-grams of up to `order` words as the rule of a metric; its aggregate is that of the corpus."""

    def rule(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
        references = [truth.answers for truth in truths]
        _checked(answers, references, "ptb")
        figures, each = captions.bleu(
            [ptb_tokens(answer).split() for answer in answers],
            [[ptb_tokens(text).split() for text in group] for group in references],
        )
        return Scores(figures[order - 1], tuple(each[order - 1]), None)

    return rule


def rouge_l_rule(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
    """ROUGE-L, the mean over the images. Here only a space separates tokens, as in pycocoevalcap."""
    references = [truth.answers for truth in truths]
    _checked(answers, references, "ptb")
    return mean_scores(
        [
            captions.rouge_l(ptb_tokens(answer).split(" "), [ptb_tokens(text).split(" ") for text in group])
            for answer, group in zip(answers, references, strict=True)
        ]
    )
