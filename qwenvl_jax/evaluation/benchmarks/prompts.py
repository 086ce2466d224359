r"""Prompts of benchmarks as templates: the strings of the released evaluation scripts with fields in braces.

    Template("<img>{question} Answer:")
    Template("<img>Context: {hint}\nQuestion: {question}\nOptions: {options}\nAnswer:")
    Template("{images|<img>\n}Question: {question}\nOptions: {options}\nAnswer:")          # any number of images

`<img>` shows the next image, `{images|..}` all that are left, each in the form after the bar, in which # is its number.
Other tags are special tokens. A field is replaced by a value of the question; values are text and cannot forge special
tokens. Text and values between two tags are tokenised as one text, as the released scripts do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.runtime.errors import UserError, nearest

FIELDS = ("question", "options", "hint", "category", "language", "images")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NO_HINT = "N/A"  # of the released multiple-choice scripts
_TAGS = (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS)
_TOKEN = re.compile("|".join([r"\{[^{}]*\}", *map(re.escape, sorted(_TAGS, key=len, reverse=True))]))


class Template:
    """A prompt with fields.

    Raises:
      UserError: for an unknown field, or a tag that only a tokenizer writes (`</img>`, `<imgpad>`).
    """

    def __init__(self, text: str):
        self.text = text
        self._parts = list(_parts(text))
        for kind, value in self._parts:
            if kind == "field" and value not in FIELDS:
                raise UserError(
                    f"the prompt {text!r} has the unknown field {{{value}}}{nearest(value, FIELDS)}; "
                    f"use {', '.join(FIELDS)}"
                )
            if kind == "tag" and value in (tags.IMG_END, tags.IMGPAD):
                raise UserError(f"the prompt {text!r} contains {value}; write <img> alone for each image")

    def pieces(self, question: Mapping[str, Any], images: Sequence[int], language: str = "en") -> list[Piece]:
        """The prompt of a question.

        Args:
          question: of an evaluation record.
          images: the indices of the images that it shows, in their order.
          language: of the record.

        Raises:
          UserError: if the template shows more or fewer images than the question has, or the question lacks a value.
        """
        writer = _Writer(list(images))
        for kind, value in self._parts:
            if kind == "images":
                form = list(_parts(value))
                for number in range(1, len(writer.left) + 1):
                    for inner, text in form:
                        writer.write(inner, text.replace("#", str(number)))
            elif kind == "field":
                writer.write("text", value_of(question, value, language))
            else:
                writer.write(kind, value)
        if writer.left or writer.missing:
            raise UserError(
                f"the prompt {self.text!r} does not fit the {len(images)} images of the question "
                f"{question.get('id')!r}; write {{images|<img>}} for any number"
            )
        return writer.pieces


class _Writer:
    """Pieces in which neighbouring texts are joined, and the images that are not shown yet."""

    def __init__(self, images: list[int]):
        self.left = images
        self.missing = False
        self.pieces: list[Piece] = []

    def write(self, kind: str, value: str) -> None:
        if kind == "text":
            before = self.pieces[-1] if self.pieces and self.pieces[-1].kind == "text" else None
            if before:
                self.pieces[-1] = Piece("text", f"{before.value}{value}")
            elif value:
                self.pieces.append(Piece("text", value))
        elif value != tags.IMG:
            self.pieces.append(Piece("special", value))
        elif self.left:
            self.pieces.append(Piece("image", self.left.pop(0)))
        else:
            self.missing = True


def _parts(text: str) -> list[tuple[str, str]]:
    """Cuts a template into ("text" | "tag" | "field" | "images", value)."""
    parts: list[tuple[str, str]] = []
    end = 0
    for match in _TOKEN.finditer(text):
        if match.start() > end:
            parts.append(("text", text[end : match.start()]))
        token = match.group()
        name, _, form = token.strip("{}").partition("|")
        if token[0] != "{":
            parts.append(("tag", token))
        elif name == "images":
            parts.append(("images", form or tags.IMG))
        else:
            parts.append(("field", token[1:-1]))
        end = match.end()
    if end < len(text):
        parts.append(("text", text[end:]))
    return parts


def value_of(question: Mapping[str, Any], field: str, language: str = "en") -> str:
    """The text of a field of a template. Raises UserError if the question lacks it."""
    if field == "language":
        return "Chinese" if language == "zh" else "English"
    if field == "options":
        return options_text(question.get("options") or ())
    if field == "hint":
        return question.get("hint") or NO_HINT
    if field == "category":
        return str(question.get("category", "")).replace("_", " ")
    if not isinstance(question.get("text"), str):
        raise UserError(f"the question {question.get('id')!r} has no text, which its prompt needs")
    return question["text"]


def options_text(options: Sequence[str]) -> str:
    """Options as the released scripts list them: one "A. text" per line. Raises UserError for more than 26."""
    if len(options) > len(LETTERS):
        raise UserError(f"a question has {len(options)} options, but only {len(LETTERS)} have a letter; leave some out")
    return "\n".join(f"{LETTERS[number]}. {option}" for number, option in enumerate(options))
