"""CIDEr-D of captions, with the official scorer (pycocoevalcap).

The scorer takes tokens separated by spaces, and the figure depends on how captions are split. Two tokenisations:

  "simple"  the default: lower case, words and single CJK characters, no punctuation. The same on every machine.
  "ptb"     Stanford's PTB tokenizer as in the official COCO and Nocaps evaluation. Needs java on the path.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence

from qwenvl_jax.runtime.errors import UserError

TOKENISATIONS = ("simple", "ptb")

# One CJK character is one token (Chinese has no spaces); otherwise a word with inner apostrophes or hyphens.
_TOKEN = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_぀-ヿ㐀-鿿豈-﫿]+(?:['’-][^\W_]+)*")


def simple_tokens(text: str) -> str:
    """The tokens of `text` joined by single spaces ("simple" tokenisation)."""
    return " ".join(_TOKEN.findall(text.lower()))


def check_tokenisation(tokenisation: str) -> None:
    """Raises UserError if the tokenisation is unknown, or needs java and there is no java."""
    if tokenisation not in TOKENISATIONS:
        raise UserError(f"the tokenisation {tokenisation!r} is not one of {', '.join(TOKENISATIONS)}")
    if tokenisation == "ptb" and shutil.which("java") is None:
        raise UserError(
            "the PTB tokenisation of CIDEr needs java, which is not on the path; install it or use 'simple'"
        )


def _ptb(groups: dict[int, list[str]]) -> dict[int, list[str]]:
    """Does what pycocoevalcap's `PTBTokenizer` does.

    But the input is UTF-8 in every locale, a text is one line whatever it contains, and no file is written next to the
    package.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    lines = [" ".join(text.split()) for group in groups.values() for text in group]
    jar = pathlib.Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    java = subprocess.run(command, input="".join(f"{line}\n" for line in lines).encode(), capture_output=True)
    tokenised = java.stdout.decode().split("\n")[:-1] if java.returncode == 0 else []
    if len(tokenised) != len(lines):
        reason = (java.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"java's PTB tokeniser failed, saying {reason!r}; repair java or use the tokenisation 'simple'")
    words = iter([word for word in line.split(" ") if word not in ptbtokenizer.PUNCTUATIONS] for line in tokenised)
    return {key: [" ".join(next(words)) for _ in group] for key, group in groups.items()}


def cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenisation: str = "simple"
) -> tuple[float, list[float]]:
    """CIDEr-D over a corpus: n = 1..4, clipped counts, Gaussian length penalty (sigma 6), times ten.

    Document frequencies come from `references`, so figures of different sets cannot be compared. A value of 1.0 is
    printed as 100 in papers. A single image has no document frequencies and always scores zero.

    Args:
      predictions: one caption per image.
      references: one or more captions per image.
      tokenisation: one of TOKENISATIONS.

    Returns:
      The mean over the images, and the value of each image.

    Raises:
      UserError: if the two differ in length or are empty, an image has no reference, or "ptb" finds no java.
    """
    if len(predictions) != len(references):
        raise UserError(f"{len(predictions)} captions were given for {len(references)} images; give one for each")
    if not predictions or not all(references):
        raise UserError("CIDEr needs at least one image, and a reference for every image")
    check_tokenisation(tokenisation)
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
