"""Limits of the rate and of the cost of requests, shared by all threads that send them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from data_pipelines.dialogues.job import EndpointSettings


class Pace:
    """Spreads amounts evenly over time: after an amount nothing may be sent until its share of a minute is over.

    Args:
      per_minute: 0 for no limit.
      clock: () -> seconds.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self._seconds_each = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free = 0.0
        self._lock = threading.Lock()

    def delay(self, amount: float = 1.0) -> float:
        """Takes an amount; the seconds to wait before it is sent."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free)
            self._free = start + amount * self._seconds_each
            return start - now

    def give_back(self, amount: float) -> None:
        """Returns what was taken and not used; a negative amount takes more."""
        with self._lock:
            self._free -= amount * self._seconds_each


class Purse:
    """The money of all runs of a dialogue set. What a request may cost at most is put aside before it is sent."""

    def __init__(self, settings: EndpointSettings):
        self._settings = settings
        self._aside = 0.0
        self._lock = threading.Lock()
        self.spent = 0.0

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Of so many tokens."""
        return (input_tokens * self._settings.input_price + output_tokens * self._settings.output_price) / 1e6

    def put_aside(self, cost: float) -> bool:
        """Puts money aside; False if the budget does not have it."""
        with self._lock:
            if self._settings.budget and self.spent + self._aside + cost > self._settings.budget:
                return False
            self._aside += cost
            return True

    def take_back(self, aside: float) -> None:
        """Returns what `put_aside` took."""
        with self._lock:
            self._aside -= aside

    def pay(self, cost: float) -> None:
        """Counts what a reply has cost."""
        with self._lock:
            self.spent += cost
