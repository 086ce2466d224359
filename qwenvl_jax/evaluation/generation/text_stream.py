"""The text of an answer while it is written: whole characters and whole tags only."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

from qwenvl_jax.data.tokenizer import Tokenizer

# The start of a tag, such as `<bo` or `<|im_`, that may end in the next piece. A model can write tags as plain letters.
_TAG_BEGUN = re.compile(r"<(?:/?[a-z]{0,7}|\|[a-z0-9_]{0,20}\|?)\Z")


class WholeTags:
    """Holds back the end of a text that comes in pieces, for as long as it may become a tag."""

    def __init__(self) -> None:
        self._held = ""

    def add(self, text: str) -> str:
        """The text that ends within no tag; it may be empty."""
        text = self._held + text
        begun = _TAG_BEGUN.search(text)
        certain = begun.start() if begun else len(text)
        self._held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """The rest of the text."""
        text = self._held
        self._held = ""
        return text


class TextStream:
    """Turns ids into pieces of text; all pieces together are `tokenizer.decode` of all ids.

    A character whose bytes have not all come is held back, and so is anything that may become a tag.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tags = WholeTags()

    def add(self, ids: Iterable[int]) -> str:
        """The text that is certain after these ids; it may be empty."""
        return self._tags.add(self._decoder.decode(self._tokenizer.to_bytes(ids)))

    def end(self) -> str:
        """The rest of the text, after the last id."""
        return self._tags.add(self._decoder.decode(b"", final=True)) + self._tags.end()
