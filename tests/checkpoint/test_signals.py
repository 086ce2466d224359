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
from support.gcs_server import free_port

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


def start(workdir: Path, data: Path, seconds: float, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    config = f"--config={ROOT / 'tests' / 'tiny_config.py'}:{data}"
    settings = ["--config.train.steps=100000", "--config.train.checkpoint_every=100000", "--config.train.log_every=1"]
    command = [sys.executable, "-c", SLOW, str(seconds), config, f"--workdir={workdir}", *settings, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}
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
    assert process.returncode == 130 and err == "interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
def test_two_processes_stop_after_one_step_and_ignore_what_comes_while_they_write(
    tmp_path: Path, tiny_data: Path, first: str
) -> None:
    workdir = tmp_path / "run"
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    joined |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    mesh = [f"--config.{key}" for key in ("mesh.data=2", "data.image_groups=2", "data.streams=2")]
    both = [start(workdir, tiny_data, 3, *mesh, **joined, JAX_PROCESS_ID=str(index)) for index in range(2)]
    try:
        wait_until(lambda: steps_begun(workdir), both[0])
        both[1].send_signal(getattr(signal, first))
        wait_until(lambda: being_written(workdir), both[0])
        for _ in range(5):
            for process in both:
                process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert being_written(workdir)
        ended = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [143, 143], ended
    (step,) = finished_steps(workdir)
    assert f"after step {step}; run the same command again" in ended[0][0]
