r"""PTB tokens of captions, as pycocoevalcap gets them from Stanford's PTBTokenizer 3.4.1.

`tokens` equals `java edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase` on a line, after the punctuation
that pycocoevalcap lists is removed. The list has "-LRB-", but brackets arrive in lower case, so they stay in the figure
there and here. Characters that are no token to the tokenizer, such as emoji, are left out.

Three inputs are treated otherwise, because there the official figure of a caption depends on its neighbours:

  - A line break of any kind within a caption is a space. pycocoevalcap replaces only "\n"; after any other one, all
    captions that follow are given to the wrong image.
  - A caption is tokenised alone. In the official file the next caption follows, and a single letter with a period at
    the end ("in aisle B.") loses its period if the next caption starts with one of `words.SENTENCE_STARTS`.
  - A tag that is opened in one caption never ends in another.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from qwenvl_jax.evaluation.metrics.ptb import characters
from qwenvl_jax.evaluation.metrics.ptb.shapes import Spelling, shapes_from

# Removed from the tokens, by pycocoevalcap and here.
PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."))

_LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\v\f\u2028\u2029"), " ")
# Chunks between spaces that are tokenised alone: words, with marks that never join two chunks.
_PLAIN = re.compile(r"(?:[^\W\d_]|-)+(?:'[A-Za-z]+)?[,;!?]?")


def tokens(text: str) -> list[str]:
    """The tokens of one caption, in lower case and without punctuation.

    A token may contain a no-break space, which the tokenizer writes into fractions and telephone numbers.
    """
    text = text.translate(_LINE_BREAKS)
    words = _kept(split(text)) if "<" in text else _words(text)  # a tag may have spaces
    if words and words[-1][-1].isspace() and split(text)[-1] == words[-1]:
        words[-1] = words[-1].rstrip()  # pycocoevalcap strips the line; an address may end with a wide space
        return _kept(words)
    return words


def _kept(pieces: Sequence[str]) -> list[str]:
    return [token for token in pieces if token not in PUNCTUATION]


def _words(text: str) -> list[str]:
    """The tokens of a line without tags, most of which are remembered."""
    words: list[str] = []
    run: list[str] = []  # neighbours that may be one token, such as "1 1/2"
    for chunk in text.split(" "):
        if not _PLAIN.fullmatch(chunk):
            run.append(chunk)
            continue
        if run:
            words += _tokens_of_run(" ".join(run), " " + chunk)
            run = []
        words += _tokens_of_run(chunk, "")
    words += _tokens_of_run(" ".join(run), "")
    return words


@functools.lru_cache(maxsize=65_536)
def _tokens_of_run(run: str, context: str) -> tuple[str, ...]:
    """The tokens of chunks that the word `context` follows."""
    return tuple(_kept(split(run, context)))


def clear_cache() -> None:
    """Forgets the tokens of chunks; for measurements."""
    _tokens_of_run.cache_clear()


def split(text: str, context: str = "") -> list[str]:
    """All tokens of one line in lower case, punctuation included; `context` follows on the line."""
    kinds = characters.kinds(f"{text}{context}\n")
    pieces = []
    position = 0
    while position < len(text):
        spelled, end = _longest(kinds, position)
        if spelled is not None:
            pieces.append(spelled(text[position:end]).lower())
        position = end
    return pieces


def _longest(kinds: str, position: int) -> tuple[Spelling | None, int]:
    """The spelling and the end of the longest token at a position; a character that starts none is left out."""
    spelled: Spelling | None = None
    end = position + 1
    reach = position
    for shape in shapes_from(kinds[position]):
        match = shape.pattern.match(kinds, position)
        if match and match.end() > reach:
            reach = match.end()
            spelled = shape.spelled
            end = match.start("rest") if "rest" in shape.pattern.groupindex else reach
    return spelled, end
