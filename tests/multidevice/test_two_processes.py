"""A run of two processes with four devices each is the run of one process with one device, up to rounding."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.params import flatten
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "support" / "tiny_config.py"


def start(workdir: Path, data: Path, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qwenvl_jax.train", f"--config={CONFIG}:{data}", f"--workdir={workdir}"]
    steps = ("train.steps=6", "train.checkpoint_every=3", "train.log_every=1")
    parts = ("data.image_groups=4", "data.streams=4", "data.decode_workers=1")  # each process builds two streams
    overrides = (*steps, *parts, *overrides)
    command += [f"--config.{override}" for override in overrides]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]


def two_processes(workdir: Path, data: Path, *overrides: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    variables = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    finish([start(workdir, data, *overrides, **variables, JAX_PROCESS_ID=str(index)) for index in range(2)])


def losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_continues_what_two_began(tmp_path: Path, tiny_data: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    finish([start(one, tiny_data)])
    mesh = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    two_processes(two, tiny_data, *mesh)
    assert len(losses(one)) == 6
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    ours, theirs = flatten(load_params(two)[0]), flatten(load_params(one)[0])
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=2e-3, err_msg="/".join(path))

    # The last checkpoint taken away, one process goes on from the middle of what two did.
    shutil.rmtree(two / "checkpoints" / "6")
    finish([start(two, tiny_data)])
    again = flatten(load_params(two)[0])
    for path, leaf in theirs.items():
        np.testing.assert_allclose(again[path], leaf, atol=2e-3, err_msg="/".join(path))
