"""The decoding loop: its operations and memory on a CPU against arithmetic, and its prediction for TPUs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import model as models
from qwenvl_jax import config as config_lib
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.planning import decoding, roofline
from qwenvl_jax.planning.hlo import program
from qwenvl_jax.sharding.mesh import AXES

ROOT = Path(__file__).parents[2]
TINY = config_lib.from_config_dict(config_lib.ModelConfig, dict(models.tiny().items()))
MODEL = dataclasses.replace(TINY, decoder=config_lib.DecoderConfig(512, 64, 3, 4, 160, 1e4, 1e-6, 2048, True, True))
BATCH = 4
COLUMNS = 96


def lowered(dtype: str) -> Any:
    mesh = Mesh(np.asarray(jax.devices()[:1], dtype=object).reshape(1, 1, 1), AXES)
    compute = config_lib.ComputeConfig(dtype, dtype, "xla", "none", "none", False, 64)
    return decoding.lower(decoding.abstract_model(MODEL, compute, mesh), mesh, BATCH, COLUMNS)


def lines(dtype: str) -> Iterator[str]:
    yield from lowered(dtype).as_text().splitlines()


def test_the_minimum_is_the_arithmetic_of_the_decoder() -> None:
    """Per layer: 4 D^2 of attention, 3 D F of the MLP, 3 D biases, 2 D norms; then the final norm and D V."""
    width, hidden, layers, vocabulary = 64, 160, 3, 512
    matrices = layers * (4 * width**2 + 3 * width * hidden) + width * vocabulary
    small = layers * (3 * width + 2 * width) + width
    keys = BATCH * COLUMNS * layers * width
    least = decoding.minimum(MODEL, "bfloat16", BATCH, COLUMNS)
    assert least.weight_bytes == 2 * matrices + 4 * small
    assert least.cache_bytes == 2 * 2 * keys
    assert least.flops == 2 * (matrices + small) * BATCH + 4 * keys


def test_a_step_computes_no_more_than_the_least() -> None:
    module = program.parse(lowered("float32").compile().as_text())
    topology = parse_topology("v5e:1x1")  # operations do not depend on it
    once, twice = (roofline.estimate(module, topology, ((0, 0, 0),), dynamic_trips=trips) for trips in (1, 2))
    least = decoding.minimum(MODEL, "float32", BATCH, COLUMNS).flops
    assert 0.9 < (twice.hardware_flops - once.hardware_flops) / least <= decoding.MOST_FLOPS


def test_the_cache_is_updated_in_place() -> None:
    stats = lowered("float32").compile().memory_analysis()
    cache = decoding.minimum(MODEL, "float32", BATCH, COLUMNS).cache_bytes
    assert stats.alias_size_in_bytes >= cache
    assert stats.temp_size_in_bytes < cache


def test_no_weight_and_no_cache_is_converted_or_transposed() -> None:
    """What the program asks for; a compiler for CPUs adds conversions, because CPUs have no products of bfloat16."""
    large = {"64x512", "64x160", "160x64", "64x3x4x16", "4x16x64", f"{BATCH}x4x{COLUMNS}x16"}
    large |= {f"3x{shape}" for shape in large}
    bad = [
        line.strip()
        for line in lines("bfloat16")
        if ("stablehlo.convert" in line or "stablehlo.transpose" in line)
        and any(f"tensor<{shape}xbf16>" in line for shape in large)
    ]
    assert not bad


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v5p:1x1x1", "v5e:2x2", "v6e:2x2", "tpu7x:1x1x1"])
def test_full_size_decoding_reads_little_more_than_the_least(topology: str) -> None:
    command = [sys.executable, "-m", "qwenvl_jax.plan", f"--config={ROOT / 'configs' / 'stage3_sft.py'}"]
    command += [f"--topology={topology}", "--decode", "--batch=32", "--context=512", "--json"]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    values = json.loads(run.stdout)
    assert 1 <= values["bytes_over_minimum"] <= decoding.MOST_BYTES
    assert 0.9 < values["flops_over_minimum"] <= decoding.MOST_FLOPS
    assert 0.8 < values["share_of_bound_roofline"] <= 1
    assert values["share_of_bound_cycles"] <= values["share_of_bound_roofline"]
    assert values["call_bytes"] < values["minimum"]["weight_bytes"] + values["minimum"]["cache_bytes"]


@pytest.mark.slow
@needs_libtpu
def test_decoding_that_does_not_fit_is_a_sentence() -> None:
    command = [sys.executable, "-m", "qwenvl_jax.plan", f"--config={ROOT / 'configs' / 'stage3_sft.py'}"]
    command += ["--topology=v5e:1x1", "--decode"]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "does not fit v5e:1x1" in run.stderr and "config.mesh.tensor" in run.stderr
