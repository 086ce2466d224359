"""QWenTokenizer: converts text with special tokens and images to ids and back, for both vocabularies of Qwen-VL models.

An image is written `<img>path or URL</img>`. Its slots contain the bytes of the path in NFC, one id per byte, padded
with `<imgpad>`. An empty `<img></img>` refers to an image in `pixel_values`.
"""
# The signatures of overridden methods differ between the classes of transformers:
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

# The argument names of the published tokenizer, in the order of IMAGE_TOKENS.
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
    """The tokenizer of a release. It normalises text to NFC and adds no tokens at either end.

    By default special tokens in the text are encoded as such. `allowed_special` (a set of names, or "none") restricts
    this, and `disallowed_special` ("all" or a set of names) makes special tokens an error. For text written by users of
    a chat, allow only those of IMAGE_TOKENS.

    Args:
      vocab_file: the path of `qwen.tiktoken`.
      sentencepiece_file: the path of the `tokenizer.model` of a small model, instead of `vocab_file`.
      image_slots: the number of ids between `<img>` and `</img>`; it must be that of the resampler's queries.
      errors: how bytes that are not UTF-8 are decoded; see `bytes.decode`.
      eos_token: see PreTrainedTokenizer.
      pad_token: see PreTrainedTokenizer.
      chat_template: a Jinja template; None means ChatML.
      settings: of PreTrainedTokenizer.

    Raises:
      ValueError: if there is no vocabulary file, or a tag argument differs from the tag of the vocabulary.
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
            names = ", ".join(self.vocab_files_names.values())
            raise ValueError(f"there is no vocabulary: the folder needs one of {names}")
        with open(path, "rb") as file:
            self._payload = file.read()
        # The file name decides, because transformers passes any tokenizer.model as `vocab_file`.
        self._kind = Pieces if path.endswith(".model") else Ranks
        self._vocabulary = self._kind(self._payload)
        self.image_slots = image_slots
        self.errors = errors
        extras = (f"<|extra_{k}|>" for k in range(self._vocabulary.extras))
        first = self._vocabulary.size
        self.special_tokens = {name: first + k for k, name in enumerate((*CONTROL_TOKENS, *extras, *IMAGE_TOKENS))}
        self._special_names = {token: name for name, token in self.special_tokens.items()}
        self.eod_id, self.im_start_id, self.im_end_id = (self.special_tokens[name] for name in CONTROL_TOKENS)
        image_ids = [self.special_tokens[name] for name in IMAGE_TOKENS]
        self.ref_start_id, self.ref_end_id, self.box_start_id, self.box_end_id = image_ids[:4]
        self.quad_start_id, self.quad_end_id, self.img_start_id, self.img_end_id, self.img_pad_id = image_ids[4:]
        self.image_special_tokens = set(image_ids[:6])
        self.IMAGE_ST = IMAGE_TOKENS  # again, because some programs empty the attribute of the class
        for name, tag in TAG_ARGUMENTS.items():
            if settings.pop(name, tag) != tag:
                raise ValueError(f"{name} is {tag!r} in this vocabulary and cannot be changed; leave it out")
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
        """Reads the Pillow image at a path or URL."""
        from .visual import read_image  # imported here because encoding text needs neither torch nor Pillow

        return read_image(source)

    # Vocabulary

    @property
    def vocab_size(self) -> int:
        return self._vocabulary.size + len(self.special_tokens)

    def __len__(self) -> int:
        return self.vocab_size

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """The id of every token. Used instead of `get_vocab`, which subclasses may override."""
        return {self._vocabulary.token(k): k for k in range(self._vocabulary.size)} | self.special_tokens

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    @property
    def mergeable_ranks(self) -> dict[bytes, int]:
        """For `qwen.tiktoken`: the rank, which equals the id, of every token given as bytes."""
        if not isinstance(self._vocabulary, Ranks):
            raise NotImplementedError("a SentencePiece vocabulary has no mergeable_ranks; use get_vocab")
        return self._vocabulary.ranks

    @functools.cached_property
    def decoder(self) -> dict[int, bytes | str]:
        """The token of every id: bytes for an ordinary token, the name for a special token."""
        return {k: self._vocabulary.data(k) for k in range(self._vocabulary.size)} | self._special_names

    @functools.cached_property
    def tokenizer(self) -> Any:
        """For `qwen.tiktoken`: the tiktoken Encoding with all special tokens. It does not fill image slots."""
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
        """The special tokens in use; transformers needs them to protect chat templates."""
        names = (*CONTROL_TOKENS, *IMAGE_TOKENS)
        return {self.special_tokens[name]: AddedToken(name, special=True, normalized=False) for name in names}

    def _update_total_vocab_size(self) -> None:
        """Does nothing: the size is fixed."""

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
        derived = ("_ids", "decoder", "tokenizer")  # cached properties, computed again on demand
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
        """Splits `text` into tokens.

        Args:
          text: any text.
          allowed_special: see the class.
          disallowed_special: see the class.
          split_special_tokens: True has the effect of `allowed_special="none"`.
          unused: other arguments of transformers.

        Raises:
          ValueError: if `<img>` is not closed, a path is too long, or a special token is unknown or disallowed.
        """
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            allowed_special = "none"
        return self.convert_ids_to_tokens(self._text_to_ids(text, allowed_special, disallowed_special))

    def _text_to_ids(
        self, text: str, allowed_special: Collection[str], disallowed_special: Collection[str]
    ) -> list[int]:
        known = self.special_tokens.keys()
        allowed = known if allowed_special == "all" else set(() if allowed_special == "none" else allowed_special)
        forbidden = known - allowed if disallowed_special == "all" else set(disallowed_special)
        if unknown := sorted(set(allowed) - known):
            raise ValueError(f"{unknown[0]!r} in allowed_special is not a special token")
        if present := sorted(name for name in forbidden if name in text):
            raise ValueError(f"the text contains the special token {present[0]!r}, which disallowed_special forbids")
        ids: list[int] = []
        position = 0
        pattern = "|".join(re.escape(name) for name in sorted(allowed, key=len, reverse=True)) or r"(?!)"
        while match := re.compile(pattern).search(text, position):
            ids += self._vocabulary.encode(normalize(text[position : match.start()]))
            ids.append(self.special_tokens[match.group()])
            position = match.end()
            if match.group() == "<img>":
                end = text.find("</img>", position)
                if end < 0:
                    raise ValueError("Unclosed image token: <img> without </img>")
                ids += [*self._slots(text[position:end]), self.img_end_id]
                position = end + len("</img>")
        return ids + self._vocabulary.encode(normalize(text[position:]))

    def _slots(self, path: str) -> list[int]:
        """The ids of an image's slots, which contain its path."""
        path = unicodedata.normalize("NFC", path)
        try:
            data = path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(f"the image path {path!r} cannot be encoded in UTF-8; rename the file") from None
        if len(data) > self.image_slots - 2:
            raise ValueError(
                f"the image path {path!r} has {len(data)} bytes, but its slots hold only {self.image_slots - 2}; use a "
                "shorter path, or write <img></img> and pass pixel_values to the model"
            )
        return [*data, *[self.img_pad_id] * (self.image_slots - len(data))]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the ids of several, given as text or as bytes; None for an unknown token."""
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
        """Decodes ids to text. The slots of an image become `<img>path</img>`, and unknown ids become U+FFFD.

        Args:
          token_ids: one id or several.
          skip_special_tokens: omits all special tokens; the text between tags is kept.
          clean_up_tokenization_spaces: ignored.
          errors: replaces that of the class, if given.
          keep_image_special: keeps the tags of references, boxes and quadrilaterals even with `skip_special_tokens`.
          unused: other arguments of transformers.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        kept = {self.special_tokens[name] for name in GROUNDING_TOKENS} if keep_image_special else set()
        parts: list[bytes] = []
        position = 0
        while position < len(ids):
            token = ids[position]
            position += 1
            if 0 <= token < self._vocabulary.size:
                parts.append(self._vocabulary.data(token))
            elif not skip_special_tokens or token in kept:
                parts.append(self._special_names.get(token, "\ufffd").encode())
            if token == self.img_start_id:
                end = next((k for k in range(position, len(ids)) if not 0 <= ids[k] < 256), position)
                if end < len(ids) and ids[end] == self.img_pad_id:
                    parts.append(bytes(ids[position:end]))
                    position = next((k for k in range(end, len(ids)) if ids[k] != self.img_pad_id), len(ids))
        return b"".join(parts).decode("utf-8", errors or self.errors)


def normalize(text: str) -> str:
    """Normalises text to NFC and replaces lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    text = unicodedata.normalize("NFC", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
