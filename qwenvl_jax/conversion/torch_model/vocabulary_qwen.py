"""The ordinary (not special) ids of the two vocabularies: `qwen.tiktoken`, and SentencePiece for small models."""

from __future__ import annotations

import base64
from typing import Any

try:
    import tiktoken
except ImportError:
    tiktoken = None  # type: ignore[assignment]
try:
    import sentencepiece
except ImportError:
    sentencepiece = None

EXTRAS = 205  # <|extra_0|> .. <|extra_204|>, between the control and image tokens of qwen.tiktoken
# Matches words, single digits, punctuation and white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "\u2581"  # how SentencePiece writes a space inside its pieces


class Ranks:
    """The ordinary ids of `qwen.tiktoken`, a file of lines "base64 rank".

    The text form of a token has one character per byte, as in GPT-2.
    """

    extras = EXTRAS

    def __init__(self, payload: bytes):
        if tiktoken is None:
            raise ImportError("the vocabulary qwen.tiktoken needs tiktoken; run `pip install tiktoken`")
        lines = (line.split() for line in payload.splitlines() if line)
        self.ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self._tokens = list(self.ranks)
        self.size = len(self.ranks)
        self._encoding = tiktoken.Encoding("qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=self.ranks, special_tokens={})
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [value for value in range(256) if value not in visible]
        self._letters = {value: chr(value) for value in visible} | {v: chr(256 + k) for k, v in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def data(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    def token(self, token_id: int) -> str:
        return "".join(self._letters[value] for value in self._tokens[token_id])

    def with_special(self, special_tokens: dict[str, int]) -> Any:
        """A tiktoken Encoding of this vocabulary and `special_tokens`."""
        return tiktoken.Encoding(
            "qwen_vl", pat_str=SPLIT_PATTERN, mergeable_ranks=self.ranks, special_tokens=special_tokens
        )


class Pieces:
    """The ordinary ids of a SentencePiece model with byte fallback."""

    extras = 0

    def __init__(self, payload: bytes):
        if sentencepiece is None:
            raise ImportError("the vocabulary tokenizer.model needs sentencepiece; run `pip install sentencepiece`")
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=payload)
        self.size = self._processor.vocab_size()
        self._space = [self._processor.piece_to_id(f"<0x{value:02X}>") for value in _SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        # SentencePiece would decode a U+2581 of the text as a space, so it is encoded as its three bytes.
        first, *rest = text.split(_SPACE)
        ids: list[int] = self._processor.encode(first)
        for part in rest:
            ids += self._space + self._processor.encode(part)
        return ids

    def data(self, token_id: int) -> bytes:
        piece = self.token(token_id)
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        if self._processor.is_unknown(token_id) or self._processor.is_control(token_id):
            return "\ufffd".encode()
        return piece.replace(_SPACE, " ").encode()

    def token(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id)
