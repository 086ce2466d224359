"""Stopping between two steps when the machine is taken away (SIGTERM)."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# What a shell reports for a process that SIGTERM ended: schedulers then start the job again.
EXIT_CODE = 128 + signal.SIGTERM


class PreemptionGuard:
    """Notes a SIGTERM while it is active; the training loop asks `stop` after every step.

    One process watches the signal itself. Several must stop after the same step: there JAX's own service receives
    the signal on any of them and agrees on the step.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def __enter__(self) -> PreemptionGuard:
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True

    def stop(self, step: int) -> bool:
        """Whether to save and end after `step`."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received
