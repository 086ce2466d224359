"""Folders of runs, written without training, and how two of them are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from qwenvl_jax.checkpoint import checksums, file_checksums, lineage
from qwenvl_jax.checkpoint.lineage import read_config
from qwenvl_jax.checkpoint.manager import Checkpoints, restore_state, save_frozen
from qwenvl_jax.config import TOWERS, Config
from qwenvl_jax.params import split
from qwenvl_jax.training.state import abstract_state

TREE = {"decoder": {"a": jnp.linspace(0, 1, 3000).reshape(30, 100)}, "vit": {"b": jnp.arange(7, dtype=jnp.bfloat16)}}
MOMENTS = (jnp.ones((5,)), {"count": jnp.zeros((), jnp.int32)})


def state(step: int) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: leaf + step, (TREE, MOMENTS))


def save(folder: Path | epath.Path, *wanted: int, keep: int = 9) -> None:
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in wanted:
            checkpoints.save(step, *state(step), {"at": step})


def assert_is(step: int, restored: tuple[Any, Any, dict[str, Any]]) -> None:
    for one, other in zip(jax.tree.leaves(restored[:2]), jax.tree.leaves(state(step)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    assert restored[2]["at"] == step


def without_checksums(folder: Path | epath.Path) -> None:
    """Makes a checkpoint one of an earlier version, which wrote no checksums of files."""
    (folder / file_checksums.NAME).unlink()
    metadata = folder / "progress" / "metadata"
    progress = checksums.check_digest(json.loads(metadata.read_text()))
    del progress["checksums"]
    metadata.write_text(json.dumps(checksums.with_digest(progress)))


def lines(workdir: Path | epath.Path) -> list[dict]:
    """The metrics without their timings."""
    written = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    values = [json.loads(line) for line in written if line.endswith("\n")]
    return [{key: value for key, value in line.items() if key != "timing"} for line in values]


def last_state(workdir: Path | epath.Path, step: int) -> list[np.ndarray]:
    """Parameters and moments of the checkpoint of `step`."""
    abstract = abstract_state(read_config(workdir))
    trainable, opt_state, progress = restore_state(workdir, step, abstract.trainable, abstract.opt_state)
    written = np.frombuffer(json.dumps(progress, sort_keys=True).encode(), np.uint8)
    return [*map(np.asarray, jax.tree.leaves((trainable, opt_state))), written]


def assert_same_run(one: Path, other: Path | epath.Path, step: int) -> None:
    """Two folders of runs hold the same state at `step` and the same metrics, to the bit."""
    for a, b in zip(last_state(one, step), last_state(other, step), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert lines(one) == lines(other)


def write_run(folder: Path, config: Config, params: dict[str, Any], steps: tuple[int, ...] = (3,)) -> None:
    """A run's folder as the loop leaves it; the parameters of step n are `params` + n."""
    trainable, frozen = split(params, config.train.trainable)
    lineage.write(folder, config, dict.fromkeys(TOWERS))
    save_frozen(folder, frozen)
    with Checkpoints(folder, keep=5) as checkpoints:
        for step in steps:
            checkpoints.save(step, jax.tree.map(lambda leaf, n=step: leaf + n, trainable), {"count": jnp.zeros(())}, {})
