"""QWenTokenizer: text with special tokens and pictures to ids and back, for both vocabularies of Qwen-VL models.

A picture is written `<img>path or URL</img>`; its slots get the bytes of the path, one id per byte, and `<imgpad>`. An
empty `<img></img>` takes a picture from `pixel_values`.
"""
# The methods that transformers asks to override differ between its own classes:
# mypy: disable-error-code="misc, override"

from __future__ import annotations

import base64
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from .grounding_qwen import GroundingMixin

try:
    import tiktoken
except ImportError:
    tiktoken = None  # type: ignore[assignment]
try:
    import sentencepiece
except ImportError:
    sentencepiece = None

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRAS = 205  # <|extra_0|> .. <|extra_204|>, which qwen.tiktoken has between its control and image tokens
GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TOKENS = (*GROUNDING_TOKENS, "<img>", "</img>", "<imgpad>")
# Words, single digits, punctuation and white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- set pictures = namespace(count=0) -%}
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set pictures.count = pictures.count + 1 -%}
{%- set source = part['image'] if part['image'] is string else part['path'] or part['url'] or '' -%}
{{- 'Picture ' ~ pictures.count ~ ': <img>' ~ source ~ '</img>\\n' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""

_SPACE = "\u2581"  # how SentencePiece writes a space inside its pieces


class _Ranks:
    """The ordinary ids of `qwen.tiktoken`: lines of "base64 rank". Tokens read as in GPT-2: one character per byte."""

    extras = EXTRAS

    def __init__(self, payload: bytes):
        if tiktoken is None:
            raise ImportError("the vocabulary qwen.tiktoken needs tiktoken; run `pip install tiktoken`")
        lines = (line.split() for line in payload.splitlines() if line)
        self._ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self._tokens = list(self._ranks)
        self.size = len(self._ranks)
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=self._ranks, special_tokens={}
        )
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [value for value in range(256) if value not in visible]
        self._letters = {value: chr(value) for value in visible} | {v: chr(256 + k) for k, v in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def data(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    def token(self, token_id: int) -> str:
        return "".join(self._letters[value] for value in self._tokens[token_id])


class _Pieces:
    """The ordinary ids of a SentencePiece model with byte fallback."""

    extras = 0

    def __init__(self, payload: bytes):
        if sentencepiece is None:
            raise ImportError("the vocabulary tokenizer.model needs sentencepiece; run `pip install sentencepiece`")
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=payload)
        self.size = self._processor.vocab_size()
        self._space = [self._processor.piece_to_id(f"<0x{value:02X}>") for value in _SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        # A written U+2581 would come back as a space, so it goes in as its three bytes.
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


class QWenTokenizer(GroundingMixin, PreTrainedTokenizer):
    """The tokenizer of a release. Nothing is added at either end of a text, which is taken in NFC.

    Every call reads special tokens written in the text as such, unless `allowed_special` (a set of names, or "none")
    says otherwise; `disallowed_special` ("all" or a set of names) makes them an error. Chats should allow those of
    IMAGE_TOKENS only.

    Args:
      vocab_file: `qwen.tiktoken`.
      sentencepiece_file: `tokenizer.model` of a small model; one of the two.
      image_slots: ids between `<img>` and `</img>`, as many as the model's resampler has queries.
      errors: how bytes that are not UTF-8 are decoded.
    """

    vocab_files_names = {"vocab_file": "qwen.tiktoken", "sentencepiece_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | None = None,
        sentencepiece_file: str | None = None,
        image_slots: int = 256,
        errors: str = "replace",
        eos_token: str = "<|endoftext|>",
        pad_token: str = "<|endoftext|>",
        chat_template: Any = None,
        **settings: Any,
    ):
        path = vocab_file or sentencepiece_file
        if not path or not os.path.isfile(path):
            raise ValueError(f"no vocabulary: the folder needs one of {', '.join(self.vocab_files_names.values())}")
        with open(path, "rb") as file:
            self._payload = file.read()
        # By the name, because transformers passes any tokenizer.model as `vocab_file`.
        self._kind = _Pieces if path.endswith(".model") else _Ranks
        self._vocabulary = self._kind(self._payload)
        self._ids: dict[str, int] = {}
        self.image_slots, self.errors = image_slots, errors
        extras = (f"<|extra_{k}|>" for k in range(self._vocabulary.extras))
        first = self._vocabulary.size
        self.special_tokens = {name: first + k for k, name in enumerate((*CONTROL_TOKENS, *extras, *IMAGE_TOKENS))}
        self._special_names = {token: name for name, token in self.special_tokens.items()}
        self.eod_id, self.im_start_id, self.im_end_id = (self.special_tokens[name] for name in CONTROL_TOKENS)
        image_ids = [self.special_tokens[name] for name in IMAGE_TOKENS]
        self.ref_start_id, self.ref_end_id, self.box_start_id, self.box_end_id = image_ids[:4]
        self.quad_start_id, self.quad_end_id, self.img_start_id, self.img_end_id, self.img_pad_id = image_ids[4:]
        super().__init__(
            image_slots=image_slots,
            errors=errors,
            eos_token=eos_token,
            pad_token=pad_token,
            chat_template=chat_template or CHAT_TEMPLATE,
            **settings,
        )

    @staticmethod
    def read_image(source: str) -> Any:
        """The Pillow picture at a path or URL."""
        from .visual import read_image  # here because ids need neither torch nor Pillow

        return read_image(source)

    # Vocabulary

    @property
    def vocab_size(self) -> int:
        return self._vocabulary.size + len(self.special_tokens)

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        if not self._ids:
            self._ids = {self._vocabulary.token(k): k for k in range(self._vocabulary.size)} | self.special_tokens
        return dict(self._ids)

    @property
    def all_special_tokens(self) -> list[str]:
        return list(self.special_tokens)

    @property
    def all_special_ids(self) -> list[int]:
        return list(self._special_names)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The special tokens that have a meaning, for transformers' own protection of chat templates."""
        names = (*CONTROL_TOKENS, *IMAGE_TOKENS)
        return {self.special_tokens[name]: AddedToken(name, special=True, normalized=False) for name in names}

    def _update_total_vocab_size(self) -> None:
        """The size never changes."""

    def _add_tokens(self, new_tokens: Iterable[str | AddedToken] | None, special_tokens: bool = False) -> int:
        for name in map(str, new_tokens or ()):
            if name not in self.special_tokens:
                raise ValueError(
                    f"{name!r} cannot be added to the vocabulary; use <|extra_0|> to <|extra_204|> instead"
                )
        return 0

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        name = self.vocab_files_names["vocab_file" if self._kind is _Ranks else "sentencepiece_file"]
        path = os.path.join(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        with open(path, "wb") as file:
            file.write(self._payload)
        return (path,)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_vocabulary": None, "_ids": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._vocabulary = self._kind(self._payload)

    # Text to ids

    def tokenize(
        self,
        text: str,
        allowed_special: Collection[str] = "all",
        disallowed_special: Collection[str] = (),
        split_special_tokens: bool | None = None,
        **unused: Any,
    ) -> list[str]:
        """Tokens of `text`; see the class about special ones. `split_special_tokens` is transformers' "none".

        Raises:
          ValueError: if `<img>` is not closed, a path is too long, or a special token is unknown or disallowed.
        """
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            allowed_special = "none"
        return self.convert_ids_to_tokens(self._text_to_ids(text, allowed_special, disallowed_special))

    def _text_to_ids(
        self, text: str, allowed_special: Collection[str], disallowed_special: Collection[str]
    ) -> list[int]:
        every = self.special_tokens.keys()
        allowed = every if allowed_special == "all" else set(() if allowed_special == "none" else allowed_special)
        forbidden = every - allowed if disallowed_special == "all" else set(disallowed_special)
        if unknown := sorted(set(allowed) - every):
            raise ValueError(f"{unknown[0]!r} in allowed_special is no special token")
        if written := sorted(name for name in forbidden if name in text):
            raise ValueError(f"the text contains the special token {written[0]!r}, which disallowed_special forbids")
        ids: list[int] = []
        at = 0
        pattern = "|".join(re.escape(name) for name in sorted(allowed, key=len, reverse=True)) or r"(?!)"
        while match := re.compile(pattern).search(text, at):
            ids += self._vocabulary.encode(normalize(text[at : match.start()]))
            ids.append(self.special_tokens[match.group()])
            at = match.end()
            if match.group() == "<img>":
                end = text.find("</img>", at)
                if end < 0:
                    raise ValueError("Unclosed image token: <img> without </img>")
                ids += [*self._slots(text[at:end]), self.img_end_id]
                at = end + len("</img>")
        return ids + self._vocabulary.encode(normalize(text[at:]))

    def _slots(self, path: str) -> list[int]:
        try:
            data = path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(f"the image path {path!r} cannot be written in UTF-8") from None
        if len(data) > self.image_slots - 2:
            raise ValueError(
                f"the image path {path!r} has {len(data)} bytes, its slots hold {self.image_slots - 2}; use a shorter "
                "one, or write <img></img> and give the model pixel_values"
            )
        return [*data, *[self.img_pad_id] * (self.image_slots - len(data))]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of one token or of several; None for one that is not in the vocabulary."""
        if not self._ids:
            self.get_vocab()
        return self._ids.get(tokens) if isinstance(tokens, str) else [self._ids.get(token) for token in tokens]

    # Ids to text

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._token(ids)
        kept = (int(token) for token in ids)
        return [self._token(token) for token in kept if not skip_special_tokens or token < self._vocabulary.size]

    def _token(self, token: int) -> str:
        ordinary = 0 <= token < self._vocabulary.size
        return self._vocabulary.token(token) if ordinary else self._special_names.get(token, "\ufffd")

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return self._decode([-1 if token is None else token for token in self.convert_tokens_to_ids(tokens)])

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str | None = None,
        keep_image_special: bool = False,
        **unused: Any,
    ) -> str:
        """The text of ids, with `<img>path</img>` for the slots of a picture. Ids that no token has become U+FFFD.

        `skip_special_tokens` drops everything above the ordinary ids and leaves what stands between tags;
        `keep_image_special` then keeps the tags of references, boxes and quadrilaterals.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        kept = {self.special_tokens[name] for name in GROUNDING_TOKENS} if keep_image_special else set()
        parts: list[bytes] = []
        at = 0
        while at < len(ids):
            token = ids[at]
            at += 1
            if 0 <= token < self._vocabulary.size:
                parts.append(self._vocabulary.data(token))
            elif not skip_special_tokens or token in kept:
                parts.append(self._special_names.get(token, "\ufffd").encode())
            if token == self.img_start_id:
                end = next((k for k in range(at, len(ids)) if not 0 <= ids[k] < 256), at)
                if end < len(ids) and ids[end] == self.img_pad_id:
                    parts.append(bytes(ids[at:end]))
                    at = next((k for k in range(end, len(ids)) if ids[k] != self.img_pad_id), len(ids))
        return b"".join(parts).decode("utf-8", errors or self.errors)


def normalize(text: str) -> str:
    """NFC, with lone surrogates (which UTF-8 cannot hold) replaced by U+FFFD."""
    text = unicodedata.normalize("NFC", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
