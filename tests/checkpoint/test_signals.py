"""Signals while the last checkpoint is written: a real process, and a storage that takes its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl_jax.checkpoint.steps import finished_steps

ROOT = Path(__file__).parents[2]

# The main of training; the end of every save is held up as by a slow disk.
SLOW = """
import sys, time
from orbax.checkpoint._src.checkpointers import async_checkpointer
finish, seconds = async_checkpointer._on_commit_callback, float(sys.argv.pop(1))
def slowly(*arguments):
    time.sleep(seconds)
    return finish(*arguments)
async_checkpointer._on_commit_callback = slowly
from qwenvl_jax import train
train.commandline.run(train.main)
"""


def start(workdir: Path, data: Path, seconds: float) -> subprocess.Popen[str]:
    config = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}:{data}"
    settings = ["--config.train.steps=100000", "--config.train.checkpoint_every=100000", "--config.train.log_every=1"]
    command = [sys.executable, "-c", SLOW, str(seconds), config, f"--workdir={workdir}", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def steps_begun(workdir: Path) -> bool:
    return (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text().count("\n") > 2


def being_written(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
def test_more_sigterms_do_not_end_the_last_checkpoint(tmp_path: Path, tiny_data: Path, first: str) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, tiny_data, 3)
    try:
        wait_until(lambda: steps_begun(workdir), process)
        process.send_signal(getattr(signal, first))
        wait_until(lambda: being_written(workdir), process)
        for _ in range(5):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert being_written(workdir)  # the signals came while it was
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143 and not err, err
    (step,) = finished_steps(workdir)
    assert f"stopped by {first} after step {step}; run the same command again" in out


@pytest.mark.slow
def test_a_second_ctrl_c_gives_up_in_one_line(tmp_path: Path, tiny_data: Path) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, tiny_data, 3)
    try:
        wait_until(lambda: steps_begun(workdir), process)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: being_written(workdir), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    # Python reports the interrupt in a line of its own if it came while a destructor ran.
    assert process.returncode == 130 and err.endswith("interrupted\n"), (process.returncode, err)
