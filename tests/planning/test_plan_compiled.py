"""`plan` with the TPU compiler: small steps compiled for topologies of every chip. `make test-plan` runs these."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import stage2_multitask
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.config import load_config
from qwenvl_jax.planning import candidates
from qwenvl_jax.planning.candidates import Candidate, Failure
from qwenvl_jax.planning.hlo import costs, program
from qwenvl_jax.planning.prediction import JSON_KEYS, Prediction
from tests.support import tiny_config, tiny_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}"
COMPILES = [
    "--topology=v5e:2x2",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=2",
    "--config.compute.unroll_layers=False",
]


def test_json_of_a_live_compilation(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "qwenvl_jax.plan",
        TINY,
        *COMPILES,
        "--json",
        f"--dump_hlo={tmp_path / 'step.txt'}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    values = json.loads(run.stdout)
    assert tuple(values) == JSON_KEYS
    assert values["fits"] and values["hbm_capacity_gib"] == 16.0
    assert 0 < values["mfu_cycles"] <= values["mfu_roofline"] < 1
    assert values["hardware_flops"] > values["model_flops"]
    assert (tmp_path / "step.txt").read_text().startswith("HloModule")


def test_a_step_that_does_not_fit_ends_with_a_sentence_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "qwenvl_jax.plan", TINY, "--topology=v5e:1x1", "--config.data.accumulation=1"]
    command += ["--config.data.rows_per_step=262144", "--config.compute.unroll_layers=False"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert re.fullmatch(
        r"error: the step does not fit v5e:1x1: a chip needs [\d.]+ of [\d.]+ GiB, [\d.]+ GiB too much; "
        r"what would make it smaller: config\.data\.accumulation=2, .* or more chips\n",
        run.stderr,
    )
    assert "what would make it smaller" in run.stdout and "predicted, not measured" in run.stdout


def test_moments_in_host_memory_are_fetched_after_the_gradients(tmp_path: Path) -> None:
    changes = {"mesh__data": 1, "mesh__fsdp": 4, "compute__unroll_layers": False}
    predictions: dict[str, Prediction] = {}
    for memory in ("device", "pinned_host"):
        config = tiny_run.make_config(tmp_path, optimizer__moments_memory=memory, **changes)
        dump = str(tmp_path / f"{memory}.txt")
        outcome = candidates.run(Candidate(memory, config, parse_topology("v5p:2x2x1")), dump)
        assert isinstance(outcome, Prediction), outcome
        predictions[memory] = outcome
    here = predictions["device"]
    there = predictions["pinned_host"]
    assert here.host_gib == 0 and there.host_gib > 0
    assert there.hbm_parts_gib["arguments"] < 0.5 * here.hbm_parts_gib["arguments"]
    peak = {memory: one.hbm_gib - one.hbm_parts_gib["code"] for memory, one in predictions.items()}
    assert peak["pinned_host"] < peak["device"] - 0.5 * there.host_gib
    module = program.parse((tmp_path / "pinned_host.txt").read_text())
    moved = {
        computation.name: sum(any(costs.host_bytes(i)) for i in computation.instructions.values())
        for computation in module.computations.values()
    }
    # Both moments of all 44 trained leaves, both ways; all in a branch that waits for the gradients.
    assert max(moved.values()) >= 2 * 2 * 44 and moved[module.entry.name] == 0


@pytest.mark.parametrize(("streams", "refusal"), [(1, "4 processes share 1 logical stream, .*streams=4"), (8, "")])
def test_hosts_that_would_repeat_work_are_seen_before_there_are_any(streams: int, refusal: str, tmp_path: Path) -> None:
    """libtpu knows which chips of a topology share a host."""
    rows = {"data__rows_per_step": 16, "data__accumulation": 1, "data__image_groups": 8, "data__streams": streams}
    config = tiny_run.make_config(tmp_path, mesh__data=8, mesh__tensor=2, compute__unroll_layers=False, **rows)
    outcome = candidates.run(Candidate("16 chips", config, parse_topology("v5e:4x4")))
    assert isinstance(outcome, Prediction), outcome
    assert re.match(refusal, outcome.refusal) if refusal else not outcome.refusal


def test_a_mesh_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    config = tiny_run.make_config(tmp_path, mesh__data=3)
    outcome = candidates.run(Candidate("bad", config, parse_topology("v5e:2x2")))
    assert isinstance(outcome, Failure) and outcome.mistake and "devices" in outcome.reason


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"])
def test_every_recipe_compiles_for_its_chip(name: str, tmp_path: Path) -> None:
    """The tiny model with kernels, remat and XLA options as in the recipe; the compiler refuses options it lacks."""
    topology = parse_topology(name)
    values = stage2_multitask.get_config(mesh=topology.chip.kind)
    tiny = tiny_config.get_config(str(tmp_path))
    with values.unlocked():
        values.model, values.data, values.tokenizer = tiny.model, tiny.data, tiny.tokenizer
        values.mesh.fsdp = 2
        values.data.rows_per_step = values.data.accumulation * topology.devices
    config = load_config(values)
    outcome = candidates.run(Candidate(name, config, topology), str(tmp_path / "step.txt"))
    assert isinstance(outcome, Prediction), outcome
    on_sparse_cores = 'execution_thread="sparsecore"' in (tmp_path / "step.txt").read_text()
    assert on_sparse_cores == topology.chip.sparse_cores
