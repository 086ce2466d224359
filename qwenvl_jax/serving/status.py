"""What an engine does and has done."""

from __future__ import annotations

import collections
import dataclasses
from collections import deque

from qwenvl_jax.serving.answer import Finished

_REMEMBERED = 256  # answers whose times are kept


@dataclasses.dataclass(frozen=True)
class EngineStatus:
    """What an engine does and has done since its start.

    Attributes:
      slots: answers that can be continued at once.
      active: answers that are being written.
      waiting: requests that wait for a slot.
      finished: answers by the reason of their end.
      failures: steps that failed; each has ended the answers in progress.
      prompt_tokens: of all requests that got a slot.
      new_tokens: of all answers that have ended.
      pictures_encoded: by the model.
      pictures_reused: whose features were stored already.
    """

    slots: int
    active: int
    waiting: int
    finished: dict[str, int]
    failures: int
    prompt_tokens: int
    new_tokens: int
    pictures_encoded: int
    pictures_reused: int


class Tally:
    """Counts what an engine does. Used under the engine's lock.

    Attributes:
      finished: answers by the reason of their end.
      failures: steps that failed.
      prompt_tokens: of all requests that got a slot.
      new_tokens: of all answers that have ended.
      total_s: seconds from request to end, of the newest answers that have ended with a token.
    """

    def __init__(self) -> None:
        self.finished: collections.Counter[str] = collections.Counter()
        self.failures = 0
        self.prompt_tokens = 0
        self.new_tokens = 0
        self.total_s: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, finished: Finished) -> None:
        """Counts an answer that has ended."""
        self.finished[finished.reason] += 1
        self.new_tokens += finished.new_tokens
        if finished.first_token_s is not None:
            self.total_s.append(finished.total_s)
