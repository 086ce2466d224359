"""The wall clock of the chaos benchmark is one clock: what reads it and what waits by it agree, also in a jump."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos_run import ROOT, clock_variables, make_clock, set_clock

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is x86-64's")

KINDS = ("condition", "semaphore", "futex")
HOUR = 3600


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    made = make_clock(tmp_path)
    if made is None:
        pytest.skip("there is no C compiler")
    return made


def waiting(clock: Path, kind: str, seconds: float) -> subprocess.Popen[str]:
    """A process that has just begun to wait."""
    command = [sys.executable, "-m", "tests.support.wall_clock_waits", kind, str(seconds)]
    environment = {**os.environ, **clock_variables(clock)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    return process


def waited(process: subprocess.Popen[str]) -> tuple[float, int]:
    """Seconds, and calls."""
    assert process.wait(60) == 0 and process.stdout is not None
    seconds, calls = process.stdout.read().split()
    return float(seconds), int(calls)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [-HOUR, 0, HOUR])
def test_a_wait_lasts_as_long_as_it_should(clock: Path, kind: str, offset: int) -> None:
    """On a clock that is wrong by an hour, a wait neither ends at once, over and over, nor lasts an hour."""
    set_clock(clock, offset)
    seconds, calls = waited(waiting(clock, kind, 0.5))
    assert seconds >= 0.49
    assert calls <= 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_forward_ends_a_wait(clock: Path, kind: str) -> None:
    process = waiting(clock, kind, 600)
    set_clock(clock, HOUR)
    waited(process)


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_back_prolongs_a_wait(clock: Path, kind: str) -> None:
    process = waiting(clock, kind, 0.5)
    set_clock(clock, -HOUR)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    set_clock(clock, 0)
    waited(process)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_due_in_1970_is_over(clock: Path, kind: str) -> None:
    """On a clock that is ahead, this moment is one that the kernel does not know."""
    if kind == "condition":
        pytest.skip("a small number counts as a moment of the monotonic clock")
    set_clock(clock, HOUR)
    _, calls = waited(waiting(clock, kind, -1e10))
    assert calls == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_of_centuries_goes_on(clock: Path, kind: str) -> None:
    set_clock(clock, -HOUR)
    process = waiting(clock, kind, 9.2e18)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.communicate()
