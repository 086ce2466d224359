"""Sums per component, memories, and the JSON text, on trees whose bytes are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.sharding.mesh import AXES
from qwenvl_jax.sharding.report import as_json, component_lines, json_text, memory_use, parameter_lines
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.summary import show_components
from tests.support import tiny_run

MESH = AbstractMesh((2, 4, 2), AXES)


def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


TREE = {
    "vit": {"proj": leaf(8, 8), "ln_post": {"scale": leaf(8)}, "blocks": {"mlp": {"up": {"kernel": leaf(2, 8, 6)}}}},
    "resampler": {"position_embedding": leaf(4, 8, dtype=jnp.bfloat16), "query": leaf(4, 8)},
}


def test_sums_per_component() -> None:
    vit, head, resampler = component_lines(parameter_lines(TREE, MESH), MESH)
    assert (vit.name, vit.bytes_total, vit.bytes_per_device, vit.bytes_replicated) == ("vit", 384, 48, 0)
    assert vit.split == {("fsdp", "tensor"): 384}
    assert (head.name, head.bytes_total, head.bytes_per_device) == ("vit_head", 256 + 32, 64 + 32)
    assert (head.bytes_replicated, head.split) == (32, {("fsdp",): 256, (): 32})
    # The sin-cos table is no component of its own.
    assert (resampler.name, resampler.bytes_total, resampler.bytes_per_device) == ("resampler", 64 + 128, 16 + 32)


def test_one_device_holds_everything() -> None:
    mesh = AbstractMesh((1, 1, 1), AXES)
    for line in component_lines(parameter_lines(TREE, mesh), mesh):
        assert line.bytes_per_device == line.bytes_total == line.bytes_replicated
        assert line.split == {(): line.bytes_total}


def test_memories() -> None:
    whole = NamedSharding(MESH, P())
    split = NamedSharding(MESH, P(("data", "fsdp")), memory_kind="pinned_host")
    tree = {
        "count": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        "mu": jax.ShapeDtypeStruct((16, 3), jnp.bfloat16, sharding=split),
        "nu": jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split),
    }
    assert memory_use(tree) == {"device": (4, 4), "pinned_host": (96 + 192, 12 + 24)}


@pytest.mark.parametrize("memory", ["device", "pinned_host"])
def test_json_of_a_state(memory: str, tmp_path: Path) -> None:
    config = tiny_run.make_config(
        tmp_path,
        train__trainable=("vit", "vit_head", "resampler"),
        compute__frozen_dtype="bfloat16",
        optimizer__moments_memory=memory,
        data__rows_per_step=16,
    )
    state = abstract_state(config, MESH)
    text = json_text(as_json(state.trainable, state.frozen, state.opt_state, MESH))
    value = json.loads(text)
    assert value["mesh"] == {"data": 2, "fsdp": 4, "tensor": 2}
    assert list(value["towers"]) == ["vit", "vit_head", "resampler", "decoder"]
    assert value["parameters"]["decoder/blocks/mlp/down/kernel"] == {
        "shape": [2, 48, 32],
        "dtype": "bfloat16",
        "spec": [None, ["tensor", "fsdp"], None],
        "bytes_per_device": 2 * 6 * 32 * 2,
        "state": "frozen",
    }
    assert value["parameters"]["resampler/query"]["state"] == "trainable"
    assert value["parameters"]["resampler/position_embedding"]["state"] == "frozen"
    trained = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.trainable))
    assert sum(part["bytes"] for part in value["optimizer"].values()) == 2 * trained + 4
    assert set(value["optimizer"]) == {"device", memory}
    assert value["optimizer"][memory]["bytes"] >= 2 * trained
    assert sum('"shape"' in line for line in text.splitlines()) == len(value["parameters"]) == 45


def test_table_of_components(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from qwenvl_jax.runtime import log

    config = tiny_run.make_config(
        tmp_path,
        train__trainable=("decoder",),
        data__rows_per_step=16,
        optimizer__moments_memory="pinned_host",
    )
    log.console.cache_clear()
    show_components(config, abstract_state(config, MESH), MESH)
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    log.console.cache_clear()
    assert list(lines) == ["vit", "vit_head", "resampler", "decoder", "all parameters", "optimiser"]
    assert "frozen" in lines["vit"] and "trained" in lines["decoder"]
    assert "fsdp 4 x tensor 2" in lines["decoder"] and "%" in lines["all parameters"]
    assert "in pinned_host memory" in lines["optimiser"]
