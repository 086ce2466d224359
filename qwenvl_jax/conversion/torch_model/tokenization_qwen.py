"""QWenTokenizer: text with special tokens and pictures to ids and back, for both vocabularies of Qwen-VL models.

A picture is written `<img>path or URL</img>`; its slots get the bytes of the path in NFC, one id per byte, and
`<imgpad>`. An empty `<img></img>` takes a picture from `pixel_values`.
"""
# The methods that transformers asks to override differ between its own classes:
# mypy: disable-error-code="misc, override"

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from .grounding_qwen import GroundingMixin
from .vocabulary_qwen import Pieces, Ranks

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TOKENS = (*GROUNDING_TOKENS, "<img>", "</img>", "<imgpad>")
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

# The published names of the tags, in the order of IMAGE_TOKENS.
TAG_ARGUMENTS = dict(
    zip(
        (
            *(f"{kind}_{side}_tag" for kind in ("ref", "box", "quad", "image") for side in ("start", "end")),
            "image_pad_tag",
        ),
        IMAGE_TOKENS,
        strict=True,
    )
)


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

    IMAGE_ST = IMAGE_TOKENS
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
        self._kind = Pieces if path.endswith(".model") else Ranks
        self._vocabulary = self._kind(self._payload)
        self.image_slots, self.errors = image_slots, errors
        extras = (f"<|extra_{k}|>" for k in range(self._vocabulary.extras))
        first = self._vocabulary.size
        self.special_tokens = {name: first + k for k, name in enumerate((*CONTROL_TOKENS, *extras, *IMAGE_TOKENS))}
        self._special_names = {token: name for name, token in self.special_tokens.items()}
        self.eod_id, self.im_start_id, self.im_end_id = (self.special_tokens[name] for name in CONTROL_TOKENS)
        image_ids = [self.special_tokens[name] for name in IMAGE_TOKENS]
        self.ref_start_id, self.ref_end_id, self.box_start_id, self.box_end_id = image_ids[:4]
        self.quad_start_id, self.quad_end_id, self.img_start_id, self.img_end_id, self.img_pad_id = image_ids[4:]
        self.image_special_tokens = set(image_ids[:6])
        for name, tag in TAG_ARGUMENTS.items():
            if settings.pop(name, tag) != tag:
                raise ValueError(f"{name} is {tag!r} in this vocabulary and cannot be another; leave it out")
            setattr(self, name, tag)
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

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """Id by token; reading it changes nothing, whatever a subclass makes of `get_vocab`."""
        return {self._vocabulary.token(k): k for k in range(self._vocabulary.size)} | self.special_tokens

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    @property
    def mergeable_ranks(self) -> dict[bytes, int]:
        """Of `qwen.tiktoken`: rank, which is the id, by the bytes of a token."""
        if not isinstance(self._vocabulary, Ranks):
            raise NotImplementedError("a SentencePiece vocabulary has no mergeable_ranks; use get_vocab")
        return self._vocabulary.ranks

    @functools.cached_property
    def decoder(self) -> dict[int, bytes | str]:
        """Token by id: the bytes of an ordinary one, the name of a special one."""
        return {k: self._vocabulary.data(k) for k in range(self._vocabulary.size)} | self._special_names

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Of `qwen.tiktoken`: the tiktoken Encoding with all special tokens. It knows no pictures."""
        if not isinstance(self._vocabulary, Ranks):
            raise NotImplementedError("a SentencePiece vocabulary has no tiktoken Encoding; use this tokenizer itself")
        return self._vocabulary.with_special(self.special_tokens)

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
        name = self.vocab_files_names["vocab_file" if self._kind is Ranks else "sentencepiece_file"]
        path = os.path.join(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        with open(path, "wb") as file:
            file.write(self._payload)
        return (path,)

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_ids", "decoder", "tokenizer")  # made again when they are asked for
        return {name: value for name, value in self.__dict__.items() if name not in derived} | {"_vocabulary": None}

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
        path = unicodedata.normalize("NFC", path)
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
        """Ids of one token or of several, as text or as the bytes of `decoder`; None for what is no token."""
        if isinstance(tokens, (str, bytes)):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_token_to_id(self, token: str | bytes) -> int | None:
        if isinstance(token, bytes):
            return self.mergeable_ranks.get(token)
        return self._ids.get(token)

    # Ids to text

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._token(ids)
        kept = (int(token) for token in ids)
        return [self._token(token) for token in kept if not skip_special_tokens or token < self._vocabulary.size]

    def _convert_id_to_token(self, index: int) -> str:
        return self._token(index)

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
