"""Texts for synthetic pages: stretches of a corpus, restricted to the characters that a font can draw, cut into rows.

texts = TextFile("gs://bucket/wiki-00000.jsonl")        # or Texts(["a text", "another"])
passage = drawable(texts.passage(rng), font, "en")
"""

from __future__ import annotations

import io
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from etils import epath

from data_pipelines.ocr.fonts import Font
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

PASSAGE = 4_000  # characters of one passage, which fill any page
_BLOCK = 1 << 18  # bytes of a file that are read for one passage

# Characters that are written without marks that combine, and from left to right: Latin, the punctuation and the symbols
# of English and Chinese text, and Chinese. A font with Arabic would draw it unshaped and in the wrong direction.
_WRITABLE = re.compile(
    r"[\u0020-\u007e\u00a1-\u00ac\u00ae-\u024f\u2010-\u2027\u2030-\u203a\u20ac\u2116\u2122\u2190-\u2193\u2200-\u22ff"
    r"\u2460-\u249b\u25a0-\u25ff\u3001-\u3011\u3014-\u301b\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff5e\uffe5]"
)
_WIDE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")  # a row may be broken before and after it


class TextSource(Protocol):
    """Any corpus of texts from which passages are drawn."""

    def passage(self, rng: np.random.Generator) -> str:
        """Up to `PASSAGE` characters from a random position. Equal states of `rng` give equal passages."""


class Texts:
    """Texts in memory: any iterable of strings.

    Raises:
      UserError: if there is no text.
    """

    def __init__(self, texts: Iterable[str]):
        self._texts = [text for text in texts if text.strip()]
        if not self._texts:
            raise UserError("synthetic pages need at least one text; name a file that has some")

    def passage(self, rng: np.random.Generator) -> str:
        """See `TextSource`. A long text is entered at a random word; after a short one comes the next."""
        index = int(rng.integers(len(self._texts)))
        text = self._texts[index]
        pieces = [text[_entry(text, int(rng.integers(len(text)))) :]]
        for number in itertools.islice(itertools.cycle(range(len(self._texts))), index + 1, index + 1000):
            if sum(map(len, pieces)) >= PASSAGE:
                break
            pieces.append(self._texts[number])
        return " ".join(pieces)[:PASSAGE]


class TextFile:
    """A file on a disk or gs://, of which one passage reads a quarter of a megabyte, however large it is.

    `.jsonl`: one object per line with a key `text`; lines without it are passed over. Anything else is plain text in
    UTF-8.

    Raises:
      FileNotFoundError: if there is no such file.
      UserError: if it is empty.
    """

    def __init__(self, path: epath.PathLike):
        self._path = storage.path(path)
        self._bytes = storage.size(self._path)
        if not self._bytes:
            raise UserError(f"{path} is empty; name a file of texts for the synthetic pages")

    def passage(self, rng: np.random.Generator) -> str:
        """See `TextSource`.

        Raises:
          UserError: if the part of the file that is read has no text.
        """
        start = int(rng.integers(self._bytes))
        # The end of the file continues at its beginning, so that its last lines are drawn like all others.
        payload = storage.read_bytes(self._path, start, _BLOCK)
        if len(payload) < _BLOCK:
            payload += b"\n" + storage.read_bytes(self._path, 0, _BLOCK - len(payload))
        texts = list(self._texts(payload))
        if not texts:
            raise UserError(
                f"{self._path} has no text in the {_BLOCK} bytes from byte {start}; every line needs `text`"
            )
        return " ".join(texts)[:PASSAGE]

    def _texts(self, payload: bytes) -> Iterable[str]:
        lines = io.BytesIO(payload).readlines()
        if self._path.suffix != ".jsonl":
            text = b"".join(lines).decode("utf-8", "ignore")
            yield text[_entry(text, 0) :] if len(lines) < 2 else text
            return
        for line in lines[1:] if len(lines) > 1 else lines:
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(text, str) and text.strip():
                yield text


def drawable(text: str, font: Font, language: str) -> str:
    """The text as `font` can draw it: in composed form, each run of spaces one space.

    Of English text, words with a character that the font lacks are left out, of Chinese text only the characters.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    code_points = font.code_points
    missing = {
        character
        for character in set(text)
        if character != " " and not (_WRITABLE.match(character) and ord(character) in code_points)
    }
    if not missing:
        return text
    if language == "en":
        return " ".join(word for word in text.split(" ") if missing.isdisjoint(word))
    return " ".join("".join(character for character in text if character not in missing).split())


def take_row(text: str, start: int, width: float, lengths: np.ndarray) -> tuple[str, int]:
    """The longest stretch from `start` that is at most `width` long and breaks no word.

    Args:
      text: as `drawable` returns it.
      start: the first character.
      width: in the unit of `lengths`.
      lengths: [characters + 1] float, the length of the text up to each position.

    Returns:
      The row without spaces around it, and the position after it. If no word fits, the row is empty and the position is
      that of the next word.
    """
    while start < len(text) and text[start] == " ":
        start += 1
    end = int(np.searchsorted(lengths, lengths[start] + width, side="right")) - 1
    while end > start and not _may_break(text, end):
        end -= 1
    if end == start:  # not even one word fits
        end = min(start + 1, len(text))
        while not _may_break(text, end):
            end += 1
        return "", end
    return text[start:end].strip(), end


def _may_break(text: str, position: int) -> bool:
    if position >= len(text):
        return True
    before, after = text[position - 1], text[position]
    return before == " " or after == " " or bool(_WIDE.match(before) or _WIDE.match(after))


def _entry(text: str, position: int) -> int:
    """The first position from `position` on at which a word begins; 0 if there is no such position."""
    while position < len(text):
        if position == 0 or _may_break(text, position):
            return position
        position += 1
    return 0
