"""A conversation with a model: pictures and questions in, answers with boxes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.pointing import regions_of
from qwenvl_jax.serving.answer import Answer, Finished
from qwenvl_jax.serving.dialogue import pictures_meant
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.options import AnswerOptions

Box = tuple[str, tuple[float, ...]]


class AnswerFailed(Exception):
    """The engine could not write an answer; one sentence."""


@dataclasses.dataclass(frozen=True)
class ChatAnswer:
    """An answer of the model.

    Attributes:
      text: with special tokens written out.
      boxes: the pictures in which boxes lie (`data.pointing`), encoded, each with these: (reference, [x1, y1, x2, y2]
        in its pixels).
      tokens: length of the prompt.
      forgotten: how many of the oldest questions, with their answers, were left out of the prompt.
      stopped: whether Ctrl-C ended it.
    """

    text: str
    boxes: list[tuple[bytes, list[Box]]]
    tokens: int
    forgotten: int = 0
    stopped: bool = False


class Conversation:
    """Keeps the turns; every question is answered from the newest turns that fit (`serving.dialogue`).

    Args:
      engine: answers; it has been started.
      options: how answers are written. To the seed the number of the turn is added.
    """

    def __init__(self, engine: Engine, options: AnswerOptions | None = None) -> None:
        self._engine = engine
        self._options = options or AnswerOptions()
        self.reset()

    def reset(self) -> None:
        """Forgets everything, including pictures that no question was asked about yet."""
        self.turns: list[dict[str, Any]] = []
        self._as_text: list[dict[str, Any]] = []  # the same turns, with answers as texts instead of ids
        self._images: list[bytes] = []
        self._sizes: list[tuple[int, int]] = []
        self._pending: list[int] = []

    def add_image(self, payload: bytes) -> None:
        """Shows a picture with the next question. Raises UserError if the bytes are not an image."""
        size = decode_image(payload).size
        self._pending.append(len(self._images))
        self._images.append(payload)
        self._sizes.append(size)

    def ask(self, question: str, on_text: Callable[[str], Any] = lambda text: None) -> ChatAnswer:
        """Asks, remembers the answer and returns it. If that fails, the conversation does not change.

        Pairs of `<ref>`, `<box>` and `<quad>` in the question are tags, as in training and in the released `chat`.
        After Ctrl-C the answer is what was written so far; KeyboardInterrupt is raised if that is nothing.

        Args:
          question: of the user.
          on_text: gets the answer piece by piece while it is written, in whole characters and whole tags.

        Raises:
          UserError: if the question does not fit.
          AnswerFailed: if the engine failed, or its time to wait or to answer was over.
        """
        parts: list[dict[str, Any]] = [{"image": index} for index in self._pending]
        asked = {"role": "user", "parts": [*parts, {"text": question}]}
        turns = [*self.turns, asked]
        options = dataclasses.replace(self._options, seed=self._options.seed + len(turns))
        finished, stopped = _followed(self._engine.submit(turns, self._images, options), on_text)
        if finished.error:
            raise AnswerFailed(finished.error)
        self.turns = [*turns, {"role": "assistant", "parts": [{"ids": finished.ids}]}]
        self._as_text.append(asked)
        boxes = self._boxes(finished)
        self._as_text.append({"role": "assistant", "parts": [{"text": finished.text}]})
        self._pending = []
        return ChatAnswer(finished.text, boxes, finished.prompt_tokens, finished.forgotten, stopped)

    def _boxes(self, finished: Finished) -> list[tuple[bytes, list[Box]]]:
        if not self._images:
            return []
        by_picture: dict[int, list[Box]] = {}
        for region in regions_of(finished.text, self._sizes, *pictures_meant(self._as_text, finished.forgotten)):
            if "box" in region:
                by_picture.setdefault(region["image"], []).append((region["ref"], tuple(region["box"])))
        return [(self._images[index], by_picture[index]) for index in sorted(by_picture)]


def _followed(answer: Answer, on_text: Callable[[str], Any]) -> tuple[Finished, bool]:
    """An answer whose pieces are passed on until its end, and whether Ctrl-C ended it."""
    stopped = False
    try:
        for piece in answer:
            on_text(piece)
    except KeyboardInterrupt:
        answer.cancel()
        if not answer.result().ids:
            raise
        stopped = True
        for piece in answer:
            on_text(piece)
    except BaseException:
        answer.cancel()
        raise
    return answer.result(), stopped
