"""CLIP's tokenizer: the same ids as OpenCLIP's, from its vocabulary file.

tokenizer = ClipTokenizer.load("bpe_simple_vocab_16e6.txt.gz", context=77)
tokenizer.encode("a photo of a cat")        # [49406, 320, 1125, 539, 320, 2368, 49407]

A text is repaired (`ftfy`), its HTML entities are read twice, its spaces become single ones, and it is lower-cased.
Then it is cut into words, and the bytes of each word are merged pair by pair (byte pair encoding).
"""

from __future__ import annotations

import functools
import gzip
import html
import zlib
from collections.abc import Sequence

import ftfy
import regex
import tokenizers
from etils import epath

from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

# The last entries of a vocabulary.
START = "<start_of_text>"
END = "<end_of_text>"

_MERGES = 49_152 - 256 - 2  # the vocabulary file has more, which were never used
_WORD_END = "</w>"
_WORDS = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
_REMEMBERED_WORDS = 1 << 17


def _characters_of_bytes() -> dict[int, str]:
    """How the vocabulary writes each byte, in the order of the ids of the bytes.

    Printable characters of Latin-1 are written as they are; the other bytes, in order, by the characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}


def clean(text: str) -> str:
    """The text as CLIP reads it. A lone surrogate becomes U+FFFD, as it has no bytes."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # of which ftfy and HTML would change nothing
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class ClipTokenizer:
    """Texts to token ids.

    Attributes:
      context: the largest number of ids of a text; longer ones are cut.
      vocab_size: number of ids.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], context: int = 77):
        """Makes a tokenizer of the pairs of characters that are merged, the first one first."""
        self._characters = _characters_of_bytes()
        characters = self._characters.values()
        words = [*characters, *(character + _WORD_END for character in characters), *map("".join, merges)]
        vocabulary = {word: number for number, word in enumerate([*words, START, END])}
        self.context = context
        self.vocab_size = len(vocabulary)
        self._start = vocabulary[START]
        self._end = vocabulary[END]
        self._special = {START: (self._start,), END: (self._end,)}
        self._model = tokenizers.models.BPE(vocabulary, list(merges), end_of_word_suffix=_WORD_END)
        self._ids = functools.lru_cache(_REMEMBERED_WORDS)(self._ids_of_word)

    @classmethod
    def load(cls, path: epath.PathLike, context: int = 77) -> ClipTokenizer:
        """Reads a vocabulary file: a line to skip, then two characters or strings to merge per line, gzipped or not.

        Raises:
          UserError: if the file is missing or is not such a vocabulary.
        """
        path = storage.path(path)
        try:
            payload = storage.read_bytes(path)
            artifacts.refuse_pointer(path, payload)
            plain = gzip.decompress(payload) if payload.startswith(b"\x1f\x8b") else payload
            lines = plain.decode().split("\n")[1 : _MERGES + 1]
            merges = [(first, second) for first, second in (line.split() for line in lines if line)]
            return cls(merges, context)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; copy bpe_simple_vocab_16e6.txt.gz of OpenCLIP there") from None
        except (ValueError, OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise
            raise _not_a_vocabulary(path, error) from None
        except Exception as error:  # of the library, if a pair consists of parts that no earlier line makes
            raise _not_a_vocabulary(path, error) from None

    def encode(self, text: str) -> list[int]:
        """The ids of a text with its start and its end, at most `context`; a cut text keeps its end."""
        ids = [self._start]
        for word in _WORDS.findall(clean(text)):
            ids += self._ids(word)
        return [*ids[: self.context - 1], self._end]

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        if word in self._special:
            return self._special[word]
        characters = "".join(self._characters[byte] for byte in word.encode())
        return tuple(token.id for token in self._model.tokenize(characters))


def _not_a_vocabulary(path: epath.Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a vocabulary of CLIP ({error}); copy bpe_simple_vocab_16e6.txt.gz of OpenCLIP")
