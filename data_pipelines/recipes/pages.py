"""Rules and recipes for pages with their lines: of PDF and HTML files, and synthetic (paper, A.4, steps 3 to 6)."""

from __future__ import annotations

import re

from data_pipelines.clean.rule import Dropped, Rule, rule
from data_pipelines.pair import RawPair

_LATIN_EXTENDED = re.compile("[\u0100-\u024f]")  # the blocks Latin Extended-A and -B
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_NO_CHARACTER = re.compile("[\ufffd\u0000-\u001f\u007f-\u009f]")


def page_size(pair: RawPair, least: int) -> RawPair | Dropped:
    """Drops a page whose picture has a side of less than `least` pixels."""
    sides = [side for picture in pair.pictures for side in (picture.width, picture.height)]
    return Dropped("too small a picture") if min(sides, default=0) < least else pair


def page_characters(pair: RawPair, least: int, most: int) -> RawPair | Dropped:
    """Drops a page with fewer than `least` or more than `most` characters; spaces do not count."""
    count = sum(len("".join(line.text.split())) for line in pair.lines)
    if count < least:
        return Dropped("too few characters")
    return Dropped("too many characters") if count > most else pair


def latin_extended(pair: RawPair) -> RawPair | Dropped:
    """Drops a page with a character of the blocks Latin Extended-A or -B: often glyphs that are wrongly mapped."""
    return _unless(pair, _LATIN_EXTENDED, "Latin Extended-A or -B")


def private_use(pair: RawPair) -> RawPair | Dropped:
    """Drops a page with a character for private use: the basic area or one of the two supplementary planes."""
    return _unless(pair, _PRIVATE_USE, "private use area")


def unmapped(pair: RawPair) -> RawPair | Dropped:
    """Drops a page with a control character or a glyph for which the document states no character; not in the paper."""
    return _unless(pair, _NO_CHARACTER, "glyph without a character")


def _unless(pair: RawPair, pattern: re.Pattern[str], reason: str) -> RawPair | Dropped:
    return Dropped(reason) if any(pattern.search(line.text) for line in pair.lines) else pair


# A smaller picture shows hardly a line; the model sees pages at 448 pixels at most.
_SIZE = rule(page_size, least=224)
# The paper states no numbers. A line takes about 40 tokens in addition to its text, and a row of stage 2 has 2,048
# tokens, so pages with more characters could not be taught whole.
_CHARACTERS = rule(page_characters, least=16, most=2500)

# In the paper's order. Synthetic pages are generated to order, so no rule drops any.
RECIPES: dict[str, tuple[Rule, ...]] = {
    "html_pages": (_SIZE, _CHARACTERS, rule(private_use), rule(unmapped)),
    "pdf_pages": (_SIZE, _CHARACTERS, rule(latin_extended), rule(private_use), rule(unmapped)),
    "synthetic_pages": (),
}
