"""Folders of runs, written without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.manager import Manager, save_frozen
from qwenvl_jax.config import Config
from qwenvl_jax.params import split

TREE = {"decoder": {"a": jnp.linspace(0, 1, 3000).reshape(30, 100)}, "vit": {"b": jnp.arange(7, dtype=jnp.bfloat16)}}
MOMENTS = (jnp.ones((5,)), {"count": jnp.zeros((), jnp.int32)})


def state(step: int) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: leaf + step, (TREE, MOMENTS))


def save(folder: Path | epath.Path, *wanted: int, keep: int = 9) -> None:
    with Manager(folder, keep=keep) as manager:
        for step in wanted:
            manager.save(step, *state(step), {"at": step})


def assert_is(step: int, found: tuple[Any, Any, dict[str, Any]]) -> None:
    for one, other in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(state(step)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    assert found[2]["at"] == step


def write_run(folder: Path, config: Config, params: dict[str, Any], steps: tuple[int, ...] = (3,)) -> None:
    """A run's folder as the loop leaves it; the parameters of step n are `params` + n."""
    trainable, frozen = split(params, config.train.trainable)
    lineage.write(folder, config, dict.fromkeys(("vit", "resampler", "decoder")))
    save_frozen(folder, frozen)
    with Manager(folder, keep=5) as manager:
        for step in steps:
            manager.save(step, jax.tree.map(lambda leaf, n=step: leaf + n, trainable), {"count": jnp.zeros(())}, {})
