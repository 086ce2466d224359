"""How a family of benchmarks asks: its prompt, the answers it compares, and how an answered exemplar is written."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks import truth
from qwenvl_jax.evaluation.benchmarks.benchmark import Exemplar, without_tags
from qwenvl_jax.evaluation.benchmarks.prompts import LETTERS, Template
from qwenvl_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of questions, answers and exemplars.

    Attributes:
      template: the prompt of a question; in a chat, its user's turn.
      needs: the key of a question that holds its truth: "answers", "right" or "box".
      letters: (question) -> the letters whose likelihoods are compared; None if the answer is generated.
      before_answer: the text between a prompt and an answer.
      preamble: is written once before exemplars and question.
      after_exemplar: is written after the answer of an exemplar.
      strip: whether white space around an answer is removed.
      chat: whether the question is asked in ChatML.
    """

    template: Template
    needs: str = "answers"
    letters: Callable[[Mapping[str, Any]], str] | None = None
    before_answer: str = " "
    preamble: Template | None = None
    after_exemplar: str = ""
    strip: bool = True
    chat: bool = False

    def options(self, question: Mapping[str, Any]) -> tuple[str, ...]:
        """The answers to compare, such as " A"; empty if the answer is generated."""
        letters = self.letters(question) if self.letters else ""
        return tuple(f"{self.before_answer}{letter}" for letter in letters)

    def answer(self, question: Mapping[str, Any]) -> str:
        """The answer of an exemplar: the letter of the right option, or the answer that most annotators gave.

        Raises:
          UserError: if it has no answer.
        """
        if self.needs == "right":
            return f"{self.before_answer}{right_letter(question)}{self.after_exemplar}"
        answers = [text for text in truth.texts(question.get("answers"), "answer") if text.strip()]
        if not answers:
            raise UserError(f"the exemplar {question.get('id')!r} has no answer")
        best = collections.Counter(answers).most_common(1)[0][0]
        return f"{self.before_answer}{best}{self.after_exemplar}"

    def pieces(
        self,
        question: Mapping[str, Any],
        record: Record,
        exemplars: Sequence[Exemplar],
        template: Template | None = None,
    ) -> tuple[list[Piece], tuple[bytes, ...]]:
        """The prompt of a question with its exemplars, and the images that it shows.

        Args:
          question: one of the record.
          record: its record.
          exemplars: are written before it, in this order.
          template: replaces `self.template`.

        Raises:
          UserError: if the prompt does not fit the question or an exemplar, or a chat has exemplars.
        """
        if self.chat and exemplars:
            raise UserError("a question in a chat has no exemplars; set its shots to 0")
        template = template or self.template
        pieces = self.preamble.pieces(question, (), record.language) if self.preamble else []
        images: list[bytes] = []
        for exemplar in exemplars:
            numbers = range(len(images), len(images) + len(exemplar.images))
            pieces += template.pieces(exemplar.question, numbers, exemplar.language)
            pieces.append(Piece("text", self.answer(exemplar.question)))
            images += exemplar.images
        numbers = range(len(images), len(images) + len(record.images))
        pieces += template.pieces(question, numbers, record.language)
        images += record.images
        return (_in_chat(pieces) if self.chat else joined(pieces)), tuple(images)

    def read(self, text: str) -> str:
        """An answer as it is scored."""
        text = without_tags(text)
        return text.strip() if self.strip or self.letters else text


def right_letter(question: Mapping[str, Any]) -> str:
    """The letter of the right option. Raises UserError if the question does not state it."""
    right = question.get("right")
    count = min(len(question.get("options") or ()), len(LETTERS))
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < count:
        raise UserError(f"the question {question.get('id')!r} does not state which of its {count} options is right")
    return LETTERS[right]


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with neighbouring texts joined, because the released scripts tokenise one string."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and piece.kind == "text" and merged[-1].kind == "text":
            merged[-1] = Piece("text", f"{merged[-1].value}{piece.value}")
        else:
            merged.append(piece)
    return merged


def _in_chat(pieces: Sequence[Piece]) -> list[Piece]:
    """ChatML around the turn of a user, as the released `model.chat` writes it."""
    parts: list[dict[str, Any]] = []
    for piece in joined(pieces):
        if piece.kind == "special":
            raise UserError(f"the prompt of a chat contains {piece.value}; the chat writes its tags itself")
        if piece.kind == "image":
            parts.append({"image": piece.value, "numbered": False})
        else:
            parts.append({"text": piece.value})
    turns = [{"role": "user", "parts": parts}]
    prompt = chat_pieces(turns, open_end=True)
    return [dataclasses.replace(piece, supervised=False) for piece in prompt]


CHAT_STOPS = (tags.IM_END, tags.IM_START, tags.ENDOFTEXT)
