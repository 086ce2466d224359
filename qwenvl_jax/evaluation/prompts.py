"""Prompts of benchmarks as templates: the strings of the released evaluation scripts with fields in braces.

    Template("<img>{question} Answer:")
    Template("<img>Context: {hint}\\nQuestion: {question}\\nOptions: {options}\\nAnswer:")

`<img>` shows the next image, and several of them all images if it is written once; other tags are special tokens; a
field is replaced by a value of the question. Values are text and cannot forge special tokens. Text and values between
two tags are tokenised as one text, as the released scripts do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.runtime.errors import UserError, nearest

FIELDS = ("question", "options", "hint", "category", "language")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TAGS = (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS)
_TOKEN = re.compile("|".join([*map(re.escape, sorted(_TAGS, key=len, reverse=True)), r"\{[^{}]*\}"]))
_NO_HINT = "N/A"  # of the released multiple-choice scripts


class Template:
    """A prompt with fields.

    Raises:
      UserError: for an unknown field, or a tag that is closed only by the tokenizer (`</img>`, `<imgpad>`).
    """

    def __init__(self, text: str):
        self.text = text
        self._parts: list[tuple[str, str]] = []  # ("text" | "tag" | "field", value)
        end = 0
        for match in _TOKEN.finditer(text):
            if match.start() > end:
                self._parts.append(("text", text[end : match.start()]))
            token = match.group()
            self._parts.append(("field", token[1:-1]) if token[0] == "{" else ("tag", token))
            end = match.end()
        if end < len(text):
            self._parts.append(("text", text[end:]))
        for kind, value in self._parts:
            if kind == "field" and value not in FIELDS:
                raise UserError(
                    f"the prompt {text!r} has the unknown field {{{value}}}{nearest(value, FIELDS)}; "
                    f"use {', '.join(FIELDS)}"
                )
            if value in (tags.IMG_END, tags.IMGPAD):
                raise UserError(f"the prompt {text!r} contains {value}; write <img> alone for each image")

    @property
    def images(self) -> int:
        """How often it shows an image."""
        return self._parts.count(("tag", tags.IMG))

    def pieces(self, question: Mapping[str, Any], images: Sequence[int], language: str = "en") -> list[Piece]:
        """The prompt of a question.

        Args:
          question: of an evaluation record.
          images: the indices of the images that it shows. They fill the `<img>` of the template in order; the last one
            takes all that are left.
          language: of the record.

        Raises:
          UserError: if the question has fewer images than the template shows, or lacks a value.
        """
        left = list(images)
        if len(left) < self.images or (left and not self.images):
            raise UserError(f"the prompt {self.text!r} shows {self.images} images, but the question has {len(left)}")
        shown = 0
        pieces: list[Piece] = []
        text = ""
        for kind, value in self._parts:
            if kind == "text":
                text += value
                continue
            if kind == "field":
                text += value_of(question, value, language)
                continue
            if text:
                pieces.append(Piece("text", text))
                text = ""
            if value == tags.IMG:
                shown += 1
                count = len(left) if shown == self.images else 1
                pieces += [Piece("image", index) for index in left[:count]]
                del left[:count]
            else:
                pieces.append(Piece("special", value))
        return [*pieces, Piece("text", text)] if text else pieces


def value_of(question: Mapping[str, Any], field: str, language: str = "en") -> str:
    """The text of a field of a template. Raises UserError if the question lacks it."""
    if field == "language":
        return "Chinese" if language == "zh" else "English"
    if field == "options":
        return options_text(question.get("options") or ())
    if field == "hint":
        return question.get("hint") or _NO_HINT
    if field == "category":
        return str(question.get("category", "")).replace("_", " ")
    if not isinstance(question.get("text"), str):
        raise UserError(f"the question {question.get('id')!r} has no text, which its prompt needs")
    return question["text"]


def options_text(options: Sequence[str]) -> str:
    """Options as the released scripts list them: one "A. text" per line."""
    return "\n".join(f"{LETTERS[number]}. {option}" for number, option in enumerate(options))
