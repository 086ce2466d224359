"""Moments in the host's memory between steps: same bits, same checkpoints, on one device and on eight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.manager import Checkpoints, restore_state
from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.loop import train
from qwenvl_jax.training.state import abstract_state
from tests.support import tiny_run
from tests.training import host_moments

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEMORIES = ("device", "pinned_host")
FEW: dict[str, Any] = {"train__trainable": ("resampler",)}  # compiles in half the time


def test_steps_are_the_same_to_the_bit() -> None:
    states, metrics = {}, {}
    for memory in MEMORIES:
        config = host_moments.configure(memory, **FEW)
        states[memory], metrics[memory] = host_moments.advance(config, host_moments.begin(config), range(3))
        assert host_moments.memories(states[memory]) == {memory}
    assert states["pinned_host"].opt_state[1].count.sharding.memory_kind == "device"
    host_moments.assert_same_bits(states["device"], states["pinned_host"])
    host_moments.assert_same_bits(metrics["device"], metrics["pinned_host"])
    assert int(states["device"].opt_state[1].count) == 3


def test_steps_of_muon_are_the_same_but_for_rounding() -> None:
    states = {}
    for memory in MEMORIES:
        config = host_moments.configure(memory, optimizer__kind="muon", **FEW)
        states[memory], _ = host_moments.advance(config, host_moments.begin(config), range(3))
    for device, host in zip(*(jax.tree.leaves(state.trainable) for state in states.values()), strict=True):
        np.testing.assert_allclose(device, host, rtol=0, atol=1e-6)


def test_a_batch_that_is_not_finite_changes_nothing() -> None:
    config = host_moments.configure("pinned_host", **FEW)
    state, _ = host_moments.advance(config, host_moments.begin(config), range(1))
    scale = state.trainable["resampler"]["ln_q"]["scale"]
    state.trainable["resampler"]["ln_q"]["scale"] = jnp.full_like(scale, jnp.nan)
    kept = jax.tree.map(np.array, state)
    after, metrics = host_moments.advance(config, state, range(1, 2))
    assert int(metrics["skipped"]) == 1 and int(after.step) == 2
    assert host_moments.memories(after) == {"pinned_host"}
    host_moments.assert_same_bits(kept.opt_state, after.opt_state)
    host_moments.assert_same_bits(kept.trainable, after.trainable)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_checkpoint_of_one_memory_is_read_into_the_other(memory: str, tmp_path: Path) -> None:
    config = host_moments.configure(memory, **FEW)
    other = host_moments.configure("pinned_host" if memory == "device" else "device", **FEW)
    state, _ = host_moments.advance(config, host_moments.begin(config), range(2))
    kept = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, state.trainable, state.opt_state, {})
        host_moments.advance(config, state, range(2, 4))  # gives the saved arrays away while they are written
    for reader in (config, other):
        abstract = abstract_state(reader, make_mesh(reader.mesh))
        trainable, opt_state, _ = restore_state(tmp_path, 2, abstract.trainable, abstract.opt_state)
        host_moments.assert_same_bits((trainable, opt_state), (kept.trainable, kept.opt_state))
        restored = state._replace(trainable=trainable, opt_state=opt_state)
        assert host_moments.memories(restored) == {reader.optimizer.moments_memory}


@pytest.mark.slow
def test_a_run_changes_its_memory_on_the_way(tmp_path: Path, tiny_data: Path) -> None:
    """Eight steps; those after the fourth again, in the other memory."""

    def run(memory: str, name: str) -> Path:
        changes = {"train__steps": 8, "train__checkpoint_every": 4, "train__log_every": 1}
        config = tiny_run.make_config(tiny_data, optimizer__moments_memory=memory, **changes)
        assert train(config, tmp_path / name) == 8
        return tmp_path / name

    whole = run("device", "whole")
    parts = run("pinned_host", "parts")
    assert lineage.read_config(parts).optimizer.moments_memory == "pinned_host"
    for memory in MEMORIES:
        host_moments.assert_same_bits(load_params(whole)[0], load_params(parts)[0])
        shutil.rmtree(parts / "checkpoints" / "8")
        run(memory, "parts")
    host_moments.assert_same_bits(load_params(whole)[0], load_params(parts)[0])


@pytest.mark.slow
def test_eight_devices() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(HERE / "host_moments.py"), "2", "2", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
