"""The arms of a study, trained one after another, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Answer, assert_refused

ROOT = Path(__file__).parents[2]
STEPS = 12


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses(workdir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.slow
def test_a_study_that_is_killed_and_continued_ends_as_one_that_was_not(tiny_data: Path, tmp_path: Path) -> None:
    """Killed in its second arm; the first is skipped afterwards, and the second goes on at its checkpoint."""

    def command(workdir: Path) -> list[str]:
        config = f"--config=tests/support/tiny_study.py:data={tiny_data}"
        return [sys.executable, "-m", "qwenvl_jax.ablate", config, f"--workdir={workdir}"]

    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    missing = [*command(tmp_path / "missing"), f"--config.init.decoder={tmp_path}/nowhere"]
    run = subprocess.run(missing, cwd=ROOT, capture_output=True, text=True)
    assert_refused(Answer(run.returncode, run.stderr), "config.init.decoder", "does not exist")

    run = subprocess.run(command(unbroken), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr + run.stdout

    process = subprocess.Popen(command(killed), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for((killed / "L4/checkpoints/4/commit_success.txt").exists, 300)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "1 of 2 arms are finished" in (killed / "ablation.html").read_text()
    stamp = (killed / "L1/metrics.jsonl").stat().st_mtime_ns

    run = subprocess.run(command(killed), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "[1/2] L1: finished before" in run.stdout and f"page: {killed}/ablation.html" in run.stdout
    assert (killed / "L1/metrics.jsonl").stat().st_mtime_ns == stamp
    assert "2 of 2 arms are finished" in (killed / "ablation.html").read_text()
    for arm in ("L1", "L4"):
        assert losses(killed / arm) == losses(unbroken / arm)
        assert [step for step, _ in losses(killed / arm)] == list(range(1, STEPS + 1))
