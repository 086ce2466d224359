"""Strings that end an answer: text is held back for as long as it may become one of them."""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_jax.runtime.errors import UserError

MAX_STOPS = 16  # strings of a request
MAX_LENGTH = 256  # characters of one


def check_stops(stops: Sequence[str]) -> None:
    """Raises UserError for strings that cannot end an answer, or would take long to look for."""
    if len(stops) > MAX_STOPS:
        raise UserError(f"{len(stops)} stop strings are too many; give at most {MAX_STOPS}")
    for stop in stops:
        if not stop:
            raise UserError("a stop string is empty and would end every answer; leave it out")
        if len(stop) > MAX_LENGTH:
            raise UserError(f"a stop string has {len(stop):,} characters; give at most {MAX_LENGTH}")


class StopStrings:
    """Cuts a text before the stop string that is complete first, however the text comes in pieces.

    If two are complete at the same character, the longer one counts.

    Attributes:
      found: whether the text has ended; nothing may be added after that.
    """

    def __init__(self, stops: Sequence[str]):
        """Begins a text. The strings are those that `check_stops` accepts."""
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that is certain after this piece; it may be empty."""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.found = True
            self._held = ""
            return text[: min(ends)[1]]
        certain = len(text) - max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """The rest of the text, after the last piece."""
        text = self._held
        self._held = ""
        return text


def _begun(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop string begins."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
