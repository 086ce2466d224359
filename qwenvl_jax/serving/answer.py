"""An answer while it is written: for the one who waits for it, and for the engine that writes it."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.evaluation.generation.text_stream import TextStream, WholeTags
from qwenvl_jax.serving.options import AnswerOptions
from qwenvl_jax.serving.stop_strings import StopStrings

Reason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclasses.dataclass(frozen=True)
class Finished:
    """An answer that has ended.

    Attributes:
      text: with special tokens written out; without the stop string that ended it.
      ids: of the new tokens, those of a stop string too, but not the id that ended it.
      reason: "stop" by an id or a string, "length" at the largest number of tokens, "cancelled", "timeout" after the
        time to wait or to answer, or "error".
      error: what went wrong, in one sentence; "" unless the reason is "timeout" or "error".
      prompt_tokens: tokens of the prompt, those of pictures too.
      images: pictures in the prompt.
      forgotten: how many of the oldest questions, with their answers, the prompt leaves out.
      first_token_s: seconds from the request to the first new token; None if there was none.
      total_s: seconds from the request to the end.
    """

    text: str
    ids: tuple[int, ...]
    reason: Reason
    error: str
    prompt_tokens: int
    images: int
    forgotten: int
    first_token_s: float | None
    total_s: float

    @property
    def new_tokens(self) -> int:
        """How many tokens were written."""
        return len(self.ids)


# What an answer tells: its pieces of text, none of them empty, and then its end.
Event = str | Finished


class Answer:
    """An answer that was asked for. Iterating over it gives its pieces as they come: whole characters, whole tags."""

    def __init__(self, on_event: Callable[[Event], Any] | None, wake: Callable[[], Any]):
        """Made by the engine.

        Args:
          on_event: called in the engine's thread with every event. If it raises, the answer is cancelled.
          wake: called after a cancellation.
        """
        self._on_event = on_event
        self._wake = wake
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._finished: Finished | None = None
        self._ended = threading.Event()
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[str]:
        """The pieces of text that nobody has taken yet, until the end."""
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # for whoever iterates again

    def result(self, timeout: float | None = None) -> Finished:
        """Waits for the end.

        Raises:
          TimeoutError: if it has not come after `timeout` seconds; the answer goes on.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the answer has not ended after {timeout} s")
        assert self._finished is not None
        return self._finished

    def cancel(self) -> None:
        """Ends the answer soon, on any thread and as often as one likes; it keeps the text that it has."""
        self._cancelled.set()
        self._wake()

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked for its end."""
        return self._cancelled.is_set()

    def tell(self, event: Event) -> None:
        """Tells a piece or the end; called by the engine alone."""
        if isinstance(event, Finished):
            self._finished = event
            self._ended.set()
            self._pieces.put(None)
        else:
            self._pieces.put(event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except BaseException:  # who asked is gone, even by SystemExit; the others' answers go on
                self._on_event = None
                self._cancelled.set()


class Draft:
    """What the engine knows of an answer from the request to its end. Used on the engine's thread.

    Attributes:
      request: the prompt with its pictures.
      options: how it is written.
      answer: for the one who waits.
      asked_s: when it was asked for, on the engine's clock.
      began_s: when it got its slot.
      ids: of the new tokens so far.
    """

    def __init__(
        self,
        request: Request,
        options: AnswerOptions,
        answer: Answer,
        tokenizer: Tokenizer,
        forgotten: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """A draft without any token."""
        self.request = request
        self.options = options
        self.answer = answer
        self.asked_s = clock()
        self.began_s = self.asked_s
        self.ids: list[int] = []
        self._clock = clock
        self._forgotten = forgotten
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(options.stop)
        self._tags = WholeTags()  # what a stop string lets go may end within a tag
        self._text: list[str] = []
        self._first_s: float | None = None

    def add(self, ids: Sequence[int]) -> bool:
        """Writes tokens, up to the one that completes a stop string.

        Returns:
          Whether a stop string has ended the answer.
        """
        pieces: list[str] = []
        for token in ids:
            self.ids.append(token)
            pieces.append(self._stops.add(self._stream.add([token])))
            if self._stops.found:
                break
        if self.ids and self._first_s is None:
            self._first_s = self._clock() - self.asked_s
        self._tell(self._tags.add("".join(pieces)))
        return self._stops.found

    def end(self, reason: Reason, error: str = "") -> Finished:
        """Ends the answer with the text that was held back, and tells so."""
        rest = ""
        if not self._stops.found:
            rest = self._stops.add(self._stream.end()) + self._stops.end()
            if self._stops.found and reason == "length":
                reason = "stop"
        self._tell(self._tags.add(rest) + self._tags.end())
        finished = Finished(
            "".join(self._text),
            tuple(self.ids),
            reason,
            error,
            len(self.request.tokens_L),
            len(self.request.pictures),
            self._forgotten,
            self._first_s,
            self._clock() - self.asked_s,
        )
        self.answer.tell(finished)
        return finished

    def _tell(self, text: str) -> None:
        if text:
            self._text.append(text)
            self.answer.tell(text)
