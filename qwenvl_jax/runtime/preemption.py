"""Stopping between two steps when the machine is preempted (SIGTERM) or the user presses Ctrl-C (SIGINT)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from qwenvl_jax.runtime import exit_codes


class PreemptionGuard:
    """Notes SIGTERM and SIGINT while it is active; the training loop asks `stop` after every step.

    Schedulers repeat SIGTERM: from the second on it is ignored. A second Ctrl-C is a `KeyboardInterrupt`. Python drops
    an exception that a handler raises while it runs a destructor or a callback of the garbage collector; then the
    `KeyboardInterrupt` is raised again at the end.

    Before the first step there is nothing to save, so SIGTERM ends the process at once, also while it compiles.

    One process watches the signals itself. Several must stop after the same step: there JAX's own service receives
    SIGTERM on any of them and agrees on the step; Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        self.signal = "SIGTERM"
        self._received = False
        self._given_up = False
        self._stepped = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionGuard:
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._given_up and kind is None:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, self._give_up)
        if jax.process_count() > 1 and not self._stepped:
            raise KeyboardInterrupt
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.signal = "SIGINT"
        self._note(number, frame)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        # Not Python's own handler: asyncio, which writes checkpoints, replaces that one and may lose the signal.
        self._given_up = True
        raise KeyboardInterrupt

    def stop(self, step: int) -> bool:
        """Whether to save and end after `step`."""
        if not self._stepped:
            self._stepped = True
            self._watch_sigterm()
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received

    @contextlib.contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """A block that SIGTERM or Ctrl-C ends by SystemExit, on every process that gets the signal.

        For long work between two steps that a later start repeats. The exception of a handler may be dropped, see
        above; then `stop` says so after the next step.
        """
        before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
        several = jax.process_count() > 1
        received = False

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal received
            received = self._received = True
            self.signal = signal.Signals(number).name
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, self._give_up)
            raise SystemExit(exit_codes.PREEMPTED)

        if several:
            set_sigterm_aside()
        try:
            for number in before:
                signal.signal(number, end)
            yield
        except SystemExit:
            self._previous.setdefault(signal.SIGTERM, signal.SIG_DFL if several else before[signal.SIGTERM])
            raise
        signal.signal(signal.SIGINT, self._give_up if received else before[signal.SIGINT])
        if several:
            restore_sigterm()
            if received:
                os.kill(os.getpid(), signal.SIGTERM)
        else:
            signal.signal(signal.SIGTERM, before[signal.SIGTERM])

    def _watch_sigterm(self) -> None:
        if jax.process_count() > 1:
            restore_sigterm()
        else:
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)


# What JAX's service had the system do on SIGTERM, as the C library describes it.
_of_service: list[ctypes.Array[ctypes.c_char]] = []
_LARGEST_ACTION = 1024  # bytes; more than any system's `struct sigaction`


def set_sigterm_aside() -> None:
    """Lets SIGTERM end the process again, which JAX's service prevents as soon as processes have joined.

    Without this, SIGTERM would have no effect until a training loop asks the service: not in an evaluation, and not
    while a run restores and compiles for minutes. The service is written in C++, so Python cannot name its handler.
    """
    action = ctypes.create_string_buffer(_LARGEST_ACTION)
    if ctypes.CDLL(None).sigaction(int(signal.SIGTERM), None, action) == 0:
        _of_service[:] = [action]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def restore_sigterm() -> None:
    """Hands SIGTERM back to JAX's service."""
    if _of_service:
        ctypes.CDLL(None).sigaction(int(signal.SIGTERM), _of_service.pop(), None)
