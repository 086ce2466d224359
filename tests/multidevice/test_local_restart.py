"""Runs that are killed and go on from local checkpoints: real processes of the training command."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from qwenvl_jax.checkpoint.steps import finished_steps
from tests.checkpoint.saved_run import assert_same_run
from tests.multidevice.test_interrupted_runs import Run, runs, two

__all__ = ["runs"]  # a fixture


def start(runs: list[Run], workdir: Path, data: Path, count: int, **variables: str) -> list[Run]:
    keys = ["train.steps=12", "train.checkpoint_every=5", f"compute.compilation_cache={workdir.parent / 'cache'}"]
    keys += [f"checkpoint.local={workdir.parent / 'disk'}", "checkpoint.local_every=1"]
    if count == 2:
        return list(two(runs, workdir, data, *keys, **variables))
    runs.append(Run(workdir, data, *keys, XLA_FLAGS="--xla_backend_optimization_level=0", **variables))
    return runs[-1:]


def kill_after(step: int, started: list[Run], disk: Path) -> None:
    """Kills all processes once they have written the local checkpoint of a step; their reader hangs after it."""

    def all_there() -> bool:
        return len(list(disk.glob(f"run_*/process_*/checkpoints/{step}"))) == len(started)

    started[0].wait_until(all_there)
    for run in started:
        run.signal_group(signal.SIGKILL)
        run.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_killed_runs_go_on_from_the_newest_step_as_if_never_stopped(
    tmp_path: Path, tiny_data: Path, runs: list[Run], count: int
) -> None:
    whole, killed, disk = tmp_path / "whole", tmp_path / "killed", tmp_path / "disk"
    for run in start(runs, whole, tiny_data, count):
        assert run.ended(400) == 0, run.output
    assert list(disk.iterdir()) == []

    kill_after(3, start(runs, killed, tiny_data, count, TEST_READ="4"), disk)
    assert finished_steps(killed) == []
    step = 3
    if count == 2:  # killed again, the second host comes back without its disk
        again = start(runs, killed, tiny_data, count, TEST_READ="6")
        kill_after(8, again, disk)
        assert f"continuing {killed} after step 3 of 12" in again[0].output, again[0].output
        assert finished_steps(killed) == [5]
        (lost,) = disk.glob("run_*/process_1")
        shutil.rmtree(lost)
        step = 5
    last = start(runs, killed, tiny_data, count)
    for run in last:
        assert run.ended(400) == 0, run.output
    assert f"continuing {killed} after step {step} of 12" in last[0].output, last[0].output
    assert_same_run(whole, killed, 12)
    assert list(disk.iterdir()) == []
