"""Signals that a run notes between two steps."""

from __future__ import annotations

import os
import signal

import pytest

from qwenvl_jax.runtime.preemption import PreemptionGuard


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class InterruptedWhileDestroyed:
    def __del__(self) -> None:
        press_ctrl_c()


def test_one_ctrl_c_is_noted_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with PreemptionGuard() as guard:
        assert not guard.stop(1)
        press_ctrl_c()
        assert guard.stop(2) and guard.signal == "SIGINT"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_second_ctrl_c_that_python_drops_is_raised_at_the_end() -> None:
    steps = 0
    with pytest.raises(KeyboardInterrupt), PreemptionGuard():
        press_ctrl_c()
        InterruptedWhileDestroyed()  # Python drops what a destructor raises
        steps += 1
    assert steps == 1
