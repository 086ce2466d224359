"""CIDEr-D of captions, with the official scorer (pycocoevalcap).

The scorer sees tokens separated by spaces; where they come from matters to the figure. Two tokenisations:

  "simple"  lower case, words and single CJK characters, punctuation dropped. The same on every machine; default.
  "ptb"     Stanford's PTB tokenizer as in the official COCO and Nocaps evaluation. Needs Java on the path.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from qwenvl_jax.runtime.errors import UserError

TOKENISATIONS = ("simple", "ptb")

# One CJK character is one token (Chinese has no spaces); otherwise a word with inner apostrophes or hyphens.
_TOKEN = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_぀-ヿ㐀-鿿豈-﫿]+(?:['’-][^\W_]+)*")


def simple_tokens(text: str) -> str:
    """The tokens of `text` joined by single spaces ("simple" tokenisation)."""
    return " ".join(_TOKEN.findall(text.lower()))


def _ptb(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    if shutil.which("java") is None:
        raise UserError(
            "the PTB tokenisation of CIDEr needs java, which is not on the path; install it or use 'simple'"
        )
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer().tokenize({key: [{"caption": text} for text in group] for key, group in texts.items()})


def cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenisation: str = "simple"
) -> tuple[float, list[float]]:
    """CIDEr-D over a corpus: n = 1..4, clipped counts, Gaussian length penalty (sigma 6), times ten.

    Document frequencies come from `references`, so the figure belongs to the evaluated set. A value of 1.0 is what
    papers print as 100. A single image has no document frequencies and always scores zero.

    Args:
      predictions: one caption per image.
      references: for every image one or more captions.
      tokenisation: one of TOKENISATIONS.

    Returns:
      The mean over the images, and the value of each image.

    Raises:
      UserError: if the two differ in length, are empty, a reference is missing, or java is (for "ptb").
    """
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} captions were given for {len(references)} images; give one for each")
    if not predictions or not all(references):
        raise UserError("CIDEr needs at least one image, and a reference for every image")
    if tokenisation not in TOKENISATIONS:
        raise UserError(f"the tokenisation {tokenisation!r} is none of {', '.join(TOKENISATIONS)}")
    from pycocoevalcap.cider.cider import Cider

    hypotheses = {i: [text] for i, text in enumerate(predictions)}
    truths = {i: list(group) for i, group in enumerate(references)}
    if tokenisation == "ptb":
        hypotheses, truths = _ptb(hypotheses), _ptb(truths)
    else:
        hypotheses = {i: [simple_tokens(text) for text in group] for i, group in hypotheses.items()}
        truths = {i: [simple_tokens(text) for text in group] for i, group in truths.items()}
    mean, each = Cider().compute_score(truths, hypotheses)
    return float(mean), [float(value) for value in each]
