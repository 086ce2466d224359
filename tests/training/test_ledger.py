"""The ledger: every second of every start is counted once, whatever ends the start."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import goodput, loop
from qwenvl_jax.training.goodput import DOWN, LOST, account_of, read_account
from qwenvl_jax.training.ledger import KINDS, Ledger, process_began
from qwenvl_jax.training.loop import train
from qwenvl_jax.training.observers import Observer
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]


def write(*lines: dict) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def start(at: float, step: int) -> dict:
    return {"event": "start", "at": at, "step": step, "host": "a", "pid": 1, "processes": 1, "devices": "1 x cpu"}


def line(begin: float, end: float, first: int, last: int, **seconds: float) -> dict:
    return {"from": begin, "to": end, "steps": [first, last], "seconds": seconds}


def test_spans_within_spans_are_counted_once(tmp_path: Path) -> None:
    ledger = Ledger()
    with ledger.kept(epath.Path(tmp_path), 0, 2), ledger.span("step"):
        time.sleep(0.03)
        with ledger.span("checkpoint"):
            time.sleep(0.05)
            with ledger.span("data"):
                time.sleep(0.02)
        ledger.advance(2)
    account = read_account(epath.Path(tmp_path))
    seconds = account.seconds
    assert 0.03 <= seconds["step"] < 0.5 and 0.05 <= seconds["checkpoint"] < 0.5 and 0.02 <= seconds["data"] < 0.5
    (only,) = account.starts
    assert (only.code, only.reason, only.last_step) == (0, "finished", 2)
    assert account.total == pytest.approx(only.end - only.begin, abs=1e-4)


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no records"), 2), (KeyboardInterrupt(), 130), (ZeroDivisionError("bug"), 1)]
)
def test_an_end_has_its_code_and_its_reason(tmp_path: Path, error: BaseException, code: int) -> None:
    with pytest.raises(type(error)), Ledger().kept(epath.Path(tmp_path), 3, 10):
        raise error
    (only,) = read_account(epath.Path(tmp_path)).starts
    assert only.code == code and only.reason.startswith(type(error).__name__)


def test_steps_that_a_restart_repeats_are_lost_work() -> None:
    account = account_of(
        write(
            start(0, 0),
            line(0, 10, 0, 0, initialisation=10),
            line(10, 30, 0, 20, step=16, data=4),
            line(30, 31, 20, 20, step=1),  # killed within step 21
            start(41, 10),  # the checkpoint of step 10
            line(41, 45, 10, 10, initialisation=4),
            line(45, 65, 10, 30, step=20),
        )
    )
    assert account.seconds[LOST] == pytest.approx(11)  # half of the twenty steps, and the one that was cut short
    assert (account.seconds["step"], account.seconds["data"]) == (pytest.approx(28), pytest.approx(2))
    assert account.seconds[DOWN] == 10 and account.total == pytest.approx(65)
    assert account.goodput == pytest.approx(28 / 65)
    assert "lost work 16.9%" in account.sentence() and "in 2 starts" in account.sentence()


def test_a_later_start_may_go_back_further_than_the_next_one() -> None:
    starts = [start(0, 0), line(0, 10, 0, 10, step=10), start(10, 10), line(10, 20, 10, 20, step=10)]
    assert account_of(write(*starts)).seconds[LOST] == 0
    assert account_of(write(*starts, start(20, 5))).seconds[LOST] == pytest.approx(15)  # 10 was damaged


def test_a_clock_that_was_set_back_between_two_starts_gives_no_negative_downtime() -> None:
    account = account_of(write(start(100, 0), line(100, 110, 0, 5, step=10), start(50, 5), line(50, 60, 5, 9, step=10)))
    assert account.seconds[DOWN] == 0 and account.total == 20


@given(st.binary(max_size=60), st.integers(0, 400))
def test_a_damaged_ledger_is_still_read(noise: bytes, at: int) -> None:
    whole = write(start(0, 0), line(0, 10, 0, 10, step=9, data=1), start(12, 10), line(12, 20, 10, 20, step=8))
    account = account_of(whole[:at] + noise + whole[at:])
    assert all(value >= 0 for value in account.seconds.values())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 20)), max_size=6))
def test_the_kinds_add_up_to_the_time_between_first_and_last_line(starts: list[tuple[int, int, int]]) -> None:
    now = 0.0
    lines = []
    for step, length, pause in starts:
        lines += [start(now, step), line(now, now + length, step, step + length, step=length * 0.75, data=length / 4)]
        now += length + pause
    account = account_of(write(*lines))
    expected = now - starts[-1][2] if starts else 0
    assert account.total == pytest.approx(expected)


def test_a_ledger_that_cannot_be_written_ends_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    with Ledger().kept(epath.Path(tmp_path), 0, 1):
        pass
    assert capfd.readouterr().out.count("ledger.jsonl cannot be written") == 1


def test_the_ledger_goes_on_in_a_bucket_after_a_line_that_was_cut_short(gcs: epath.Path) -> None:
    folder = epath.Path(gcs) / "run"
    for step in (0, 2):
        with Ledger().kept(folder, step, 4):
            pass
        if not step:
            (folder / "ledger.jsonl").write_bytes((folder / "ledger.jsonl").read_bytes() + b'{"from": 1.5, "to')
    assert [each.step for each in read_account(folder).starts] == [0, 2]


def test_the_age_of_this_process_is_known() -> None:
    assert 0 < time.time() - process_began() < 24 * 3600
    command = [sys.executable, "-c", "import time; from qwenvl_jax.training.ledger import process_began as began; "]
    command[-1] += "time.sleep(0.3); print(began())"
    before = time.time()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert before - 0.05 <= float(run.stdout) <= before + 5


class Crash(Exception):
    """As of a machine that fails."""


def slow_evaluation(*run: object) -> Observer:
    def observe(step: int, state: object) -> dict[str, float]:
        time.sleep(0.2)
        return {"figure": 1.0}

    return observe


@pytest.mark.slow
def test_a_run_of_three_starts_is_counted_to_half_a_percent_of_the_clock(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.make_config(tiny_data, train__steps=12, train__checkpoint_every=4, evaluation__every=4)
    fetch = loop.put_batch
    began = time.time()
    for crash_at in (8, 8, 0):  # the batch of a start, counted from 1
        batches = itertools.count(1)

        def fetch_or_crash(*batch: Any, batches: Any = batches, crash_at: int = crash_at) -> Any:
            if next(batches) == crash_at:
                raise Crash
            return fetch(*batch)

        monkeypatch.setattr(loop, "put_batch", fetch_or_crash)
        try:
            train(config, tmp_path / "run", [slow_evaluation])
        except Crash:
            time.sleep(0.5)
    wall = (tmp_path / "run/ledger.jsonl").stat().st_mtime - began  # to the last line
    account = read_account(epath.Path(tmp_path / "run"))
    assert account.total == pytest.approx(wall, rel=0.005)
    assert [(each.step, each.last_step, each.code) for each in account.starts] == [(0, 6, 1), (4, 10, 1), (8, 12, 0)]
    assert 1.0 <= account.seconds[DOWN] < 30 and account.seconds["evaluation"] >= 0.6
    assert all(account.seconds[kind] > 0 for kind in (*KINDS, LOST) if kind != "other")
    shares = sum(account.share(kind) for kind in goodput.ALL_KINDS)
    assert shares == pytest.approx(1.0)


KILLED = """
import sys, time
from etils import epath
from qwenvl_jax.training.ledger import Ledger, process_began
ledger = Ledger(process_began())
with ledger.kept(epath.Path(sys.argv[1]), 0, 9), ledger.span("step"):
    ledger.advance(4)
    with ledger.span("checkpoint"):
        print("checkpoint", flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_start_is_counted_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    before = time.time()
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        assert process.stdout and process.stdout.readline() == b"checkpoint\n"
        while read_account(epath.Path(tmp_path)).seconds["checkpoint"] < 2:  # while it is still in that span
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = time.time()
    account = read_account(epath.Path(tmp_path))
    (only,) = account.starts
    assert (only.code, only.last_step) == (None, 4)
    assert only.begin == pytest.approx(before, abs=2) and killed - 10 < only.end <= killed
    assert account.seconds["initialisation"] > 0.1 and account.total == pytest.approx(only.end - only.begin, abs=0.01)
