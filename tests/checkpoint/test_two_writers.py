"""Two processes that write one checkpoint: they stop after one step, and take the same one again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.checkpoint.steps import finished_steps
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]

# Steps without a model, until a signal comes; then a checkpoint whose end is held up. Later: the newest whole one.
CODE = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from orbax.checkpoint._src.checkpointers import async_checkpointer
from qwenvl_jax.checkpoint.manager import Checkpoints
from qwenvl_jax.checkpoint.restore import newest_state
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.preemption import PreemptionGuard

workdir, first = sys.argv[1], int(sys.argv[2])
finish = async_checkpointer._on_commit_callback
async_checkpointer._on_commit_callback = lambda *arguments: (time.sleep(3 if first else 0), finish(*arguments))
distributed.initialize()
split = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
params = {"a": jax.make_array_from_callback((4, 1000), split, lambda index: np.arange(4000.0).reshape(4, 1000)[index])}
if not first:
    step, restored, _, progress = newest_state(workdir, params, {"b": params["a"]})
    print("took", step, progress["at"], float(restored["a"].addressable_shards[0].data[0, 1] % 1000), flush=True)
    sys.exit()
with PreemptionGuard() as guard, Checkpoints(workdir, keep=3) as checkpoints:
    checkpoints.save(1, params, {"b": params["a"]}, {"at": 1})
    checkpoints.wait()
    guard.stop(1)  # from the first step on, SIGTERM asks for a checkpoint
    print("ready", flush=True)
    for step in range(2, 100000):
        time.sleep(0.02)
        if guard.stop(step):
            checkpoints.save(step, params, {"b": params["a"]}, {"at": step})
            checkpoints.wait()
            print("saved", step, flush=True)
            break
"""


def start_two(workdir: Path, first: int) -> list[subprocess.Popen[str]]:
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    variables |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(workdir), str(first)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environments = [{**os.environ, **variables, "JAX_PROCESS_ID": str(index)} for index in range(2)]
    return [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for environment in environments]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    try:
        return [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
def test_a_signal_on_one_stops_both_and_more_do_not_end_the_checkpoint(tmp_path: Path, first: str) -> None:
    workdir = tmp_path / "run"
    both = start_two(workdir, 1)
    for process in both:
        assert process.stdout is not None
        while "ready" not in (line := process.stdout.readline()):
            assert line, ends(both)
    both[1].send_signal(getattr(signal, first))
    while not any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")) and both[0].poll() is None:
        time.sleep(0.02)
    while_written = 0
    for _ in range(5):
        for process in both:
            process.send_signal(signal.SIGTERM)
        while_written += any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))
        time.sleep(0.05)
    assert while_written
    said = ends(both)
    assert [process.returncode for process in both] == [0, 0], said
    step = max(finished_steps(workdir))
    assert all(f"saved {step}" in out for out, _ in said) and step > 1
    # What one of them wrote is lost: both take the one before.
    files = (workdir / f"checkpoints/{step}/params/ocdbt.process_1").rglob("*")
    largest = max(files, key=lambda file: file.stat().st_size if file.is_file() else 0)
    largest.write_bytes(b"")
    both = start_two(workdir, 0)
    said = ends(both)
    assert [process.returncode for process in both] == [0, 0], said
    assert all("took 1 1 1.0" in out for out, _ in said), said
    assert (workdir / f"checkpoints/{step}.damaged").exists()
