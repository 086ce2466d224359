"""Text to ids and back: the released Qwen vocabulary, or a SentencePiece one for small models.

Both put the special tokens after the ordinary ones and in the same order, normalise text to NFC, add nothing at
either end, and never make a special id out of text: only a `Piece` of kind "special" becomes a special token.
`decode(encode(text))` is the NFC form of `text`, byte for byte.
"""

from __future__ import annotations

import abc
import base64
import binascii
import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
import tiktoken
from etils import epath

from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data import tags
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

# Words, single digits, punctuation and white space (released tokenization_qwen.py).
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_EXTRAS = 205  # <|extra_0|> .. <|extra_204|>, between the control and the image tags
QWEN_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"  # of the released qwen.tiktoken
_CACHED_TEXT = 256  # characters; longer texts hardly ever come twice
SENTENCEPIECE_SPACE = "▁"  # how SentencePiece writes a space inside its pieces


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens. `first` is the lowest of them; every ordinary id is below it."""

    eot: int
    im_start: int
    im_end: int
    extras: tuple[int, ...]
    ref: int
    ref_end: int
    box: int
    box_end: int
    quad: int
    quad_end: int
    img: int
    img_end: int
    imgpad: int

    @property
    def first(self) -> int:
        """The lowest id of a special token."""
        return self.eot

    @staticmethod
    def after(ordinary: int, extras: int) -> SpecialIds:
        """Numbers the special tokens from `ordinary` on: control tags, `extras` spare ids, image tags."""
        first_extra = ordinary + len(tags.CONTROL_TAGS)
        first_image = first_extra + extras
        eot, im_start, im_end = range(ordinary, first_extra)
        ref, ref_end, box, box_end, quad, quad_end, img, img_end, imgpad = range(first_image, first_image + 9)
        return SpecialIds(
            eot=eot, im_start=im_start, im_end=im_end, extras=tuple(range(first_extra, first_image)),
            ref=ref, ref_end=ref_end, box=box, box_end=box_end, quad=quad, quad_end=quad_end,
            img=img, img_end=img_end, imgpad=imgpad,
        )  # fmt: skip


class Tokenizer(abc.ABC):
    """The interface of both vocabularies.

    Attributes:
      special: ids of the special tokens.
      special_names: id -> written form, such as "<box>"; `special_by_name` is its inverse.
      vocab_size: number of ids in use; ids run from 0 to `vocab_size - 1`.
      digest: hex digits of the vocabulary, the same wherever its file lies.
    """

    digest: str

    def __init__(self, ordinary: int, extras: int):
        self.special = SpecialIds.after(ordinary, extras)
        names = [*tags.CONTROL_TAGS, *(f"<|extra_{k}|>" for k in range(extras)), *tags.IMAGE_TAGS]
        self.special_names = {ordinary + k: name for k, name in enumerate(names)}
        self.special_by_name = {name: token for token, name in self.special_names.items()}
        self.vocab_size = ordinary + len(names)
        self._cached = functools.lru_cache(maxsize=1 << 15)(self._encode_array)

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of NFC text without lone surrogates."""

    @abc.abstractmethod
    def _bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 bytes of ordinary ids; may end inside a character."""

    def _encode_array(self, text: str) -> np.ndarray:
        ids = np.asarray(self._encode(tags.normal_form(text)), np.int32)
        ids.flags.writeable = False  # shared by everyone who asks for the same text
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as a read-only int32 array [L]; short texts, which repeat a lot, are remembered."""
        return self._cached(text) if len(text) <= _CACHED_TEXT else self._encode_array(text)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` in NFC, all below `special.first`, whatever special tokens the text spells out."""
        return self._encode(tags.normal_form(text))

    def decode(self, ids: Iterable[int], *, keep_special: bool = True) -> str:
        """The text of `ids`; special tokens in their written form, or dropped if not `keep_special`.

        Bytes that are not UTF-8, and ids beyond `vocab_size` (rows of the embedding that no token uses, which an
        untrained model may emit), become U+FFFD.
        """
        return self.to_bytes(ids, keep_special=keep_special).decode("utf-8", "replace")

    def to_bytes(self, ids: Iterable[int], *, keep_special: bool = True) -> bytes:
        """The bytes of which `decode` makes text. They may begin and end inside a character."""
        parts: list[bytes] = []
        ordinary: list[int] = []
        for token in map(int, ids):
            if 0 <= token < self.special.first:
                ordinary.append(token)
                continue
            parts.append(self._bytes(ordinary))
            ordinary = []
            if token in self.special_names:
                parts.append(self.special_names[token].encode() if keep_special else b"")
            else:
                parts.append("\ufffd".encode())
        parts.append(self._bytes(ordinary))
        return b"".join(parts)


class QwenTokenizer(Tokenizer):
    """Byte-pair ranks in tiktoken's format. With the released file: 151,643 ranks, specials up to 151,859."""

    def __init__(self, ranks: dict[bytes, int]):
        super().__init__(len(ranks), QWEN_EXTRAS)
        digest = hashlib.sha256()
        for token in sorted(ranks, key=ranks.__getitem__):
            digest.update(len(token).to_bytes(4, "little") + token)
        self.digest = digest.hexdigest()
        self._encoding = tiktoken.Encoding("qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def _encode(self, text: str) -> list[int]:
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of pyo3: no subclass of Exception, and nothing to import
                raise
            raise UserError(
                "its text cannot be tokenised; shorten its run of hundreds of thousands of spaces"
            ) from None

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(ids) if ids else b""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file with byte fallback; the special tokens follow its pieces."""

    def __init__(self, model: bytes, extras: int = 0):
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)  # not an argument above, where b"" would mean none
        size = self._processor.vocab_size()
        self._pieces = [self._piece_bytes(k) for k in range(size)]
        self._space_bytes = [self._processor.piece_to_id(f"<0x{value:02X}>") for value in SENTENCEPIECE_SPACE.encode()]
        if self._processor.unk_id() in self._space_bytes:
            raise UserError("the SentencePiece model has no byte fallback; train one with train_sentencepiece")
        super().__init__(size, extras)
        self.digest = hashlib.sha256(model).hexdigest()

    def _piece_bytes(self, k: int) -> bytes:
        piece = self._processor.id_to_piece(k)
        if self._processor.is_byte(k):
            return bytes([int(piece[3:5], 16)])
        if self._processor.is_unknown(k) or self._processor.is_control(k):
            return "\ufffd".encode()
        return piece.replace(SENTENCEPIECE_SPACE, " ").encode()

    def _encode(self, text: str) -> list[int]:
        if SENTENCEPIECE_SPACE not in text:
            return self._processor.encode(text)
        # A written U+2581 would come back as a space, so it goes in as its three bytes.
        first, *rest = text.split(SENTENCEPIECE_SPACE)
        ids: list[int] = self._processor.encode(first)
        for part in rest:
            ids += self._space_bytes + self._processor.encode(part)
        return ids

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._pieces[k] for k in ids)


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Loads the vocabulary of `config`.

    An empty path of kind `qwen` means the released file inside the installed `dashscope` package, which is found
    without importing it and must be the released one to the byte.

    Raises:
      UserError: if the file is missing or is no vocabulary of that kind.
    """
    if config.kind == "sentencepiece":
        if not config.path:
            raise UserError("config.tokenizer.path is empty; name the .model file that train_sentencepiece wrote")
        payload = _read(config.path, "write it with train_sentencepiece or correct config.tokenizer.path")
        try:
            tokenizer = SentencePieceTokenizer(payload)
            tokenizer.decode(tokenizer.encode("A dog, 12 birds\n一只猫 été"))
            return tokenizer
        except (RuntimeError, LookupError, ValueError) as error:
            raise UserError(f"{config.path} is not a SentencePiece model; correct config.tokenizer.path") from error
    if config.kind != "qwen":
        raise UserError(f"config.tokenizer.kind is {config.kind!r}; choose qwen or sentencepiece")
    if config.path:
        payload = _read(config.path, "correct config.tokenizer.path")
        return QwenTokenizer(parse_ranks(payload, config.path))
    return _released_tokenizer()


@functools.cache
def _released_tokenizer() -> QwenTokenizer:
    """The vocabulary of the installed package, parsed once per process (it takes half a second)."""
    path = packaged_qwen_vocabulary()
    payload = path.read_bytes()
    if hashlib.sha256(payload).hexdigest() != QWEN_SHA256:
        raise UserError(
            f"{path} is not the released Qwen vocabulary; reinstall it with `pip install -r requirements.txt` "
            "or name another file with --config.tokenizer.path"
        )
    return QwenTokenizer(parse_ranks(payload, path))


def vocabulary_digest(config: TokenizerConfig) -> str:
    """sha256 of the vocabulary's file: equal for the same vocabulary at another path.

    Raises:
      UserError: if the file is missing.
    """
    if config.kind == "qwen" and not config.path:
        return QWEN_SHA256  # `load_tokenizer` compares it
    return hashlib.sha256(_read(config.path, "correct config.tokenizer.path")).hexdigest()


def packaged_qwen_vocabulary() -> epath.Path:
    """Path of `qwen.tiktoken` in the installed `dashscope` package, without importing that.

    Raises:
      UserError: if the package is not installed or has no such file.
    """
    spec = importlib.util.find_spec("dashscope")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = epath.Path(folder) / "resources" / "qwen.tiktoken"
        if path.exists():
            return path
    raise UserError(
        "the Qwen vocabulary is not installed; run `pip install -r requirements.txt` or name a qwen.tiktoken "
        "file with --config.tokenizer.path"
    )


def parse_ranks(payload: bytes, path: epath.PathLike) -> dict[bytes, int]:
    """Parses lines of `base64 rank`, ranks 0, 1, .. without gaps.

    Raises:
      UserError: naming `path` if the payload is something else.
    """
    wrong = UserError(f"{path} is not a tiktoken vocabulary; correct config.tokenizer.path")
    try:
        pairs = [line.split() for line in payload.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise wrong from None
    if len(ranks) < 256 or sorted(ranks.values()) != list(range(len(ranks))):
        raise wrong
    if any(bytes([value]) not in ranks for value in range(256)):
        raise wrong
    return ranks


def _read(path: epath.PathLike, remedy: str) -> bytes:
    try:
        payload = storage.read_bytes(storage.path(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"the vocabulary {path} does not exist; {remedy}") from None
    artifacts.refuse_pointer(path, payload)
    return payload
