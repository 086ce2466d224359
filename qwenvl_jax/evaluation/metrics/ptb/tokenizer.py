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

from qwenvl_jax.evaluation.metrics.ptb import characters
from qwenvl_jax.evaluation.metrics.ptb.rules import RULES

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
    if "<" in text:  # a tag may have spaces
        return [token for token in split(text) if token not in PUNCTUATION]
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
    return tuple(token for token in split(run, context) if token not in PUNCTUATION)


def clear_cache() -> None:
    """Forgets the tokens of chunks; for measurements."""
    _tokens_of_run.cache_clear()


def split(text: str, context: str = "") -> list[str]:
    """All tokens of one line in lower case, punctuation included; `context` follows on the line."""
    kinds = characters.kinds(f"{text}{context}\n")
    end = len(text)
    pieces = []
    position = 0
    while position < end:
        chosen = None
        reach = position
        stop = position + 1
        for rule in RULES:
            match = rule.pattern.match(kinds, position)
            if match and match.end() > reach:
                chosen = rule
                reach = match.end()
                stop = match.end("token") - rule.drop
        if chosen is not None and chosen.rewrite is not None:
            pieces.append(chosen.rewrite(text[position:stop]).lower())
        position = stop
    return pieces
