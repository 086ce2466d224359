"""Runs the tiny model on one mesh of eight virtual CPU devices; `test_meshes.py` compares the answers.

Usage: eight_devices.py OUTPUT.npz DATA FSDP TENSOR SLICES [WORKDIR]; with a WORKDIR the state after two steps is
saved there, or, if it holds one, restored from it on this mesh.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.checkpoint.manager import Checkpoints
from qwenvl_jax.checkpoint.restore import initial_params
from qwenvl_jax.params import flatten, merge, split
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.loop import begin, resume
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import State, abstract_state
from qwenvl_jax.training.step import make_train_step
from tests.support import tiny_run


def main(output: str, data: int, fsdp: int, tensor: int, slices: int, workdir: str = "") -> None:
    config = tiny_run.make_config(
        mesh__data=data,
        mesh__fsdp=fsdp,
        mesh__tensor=tensor,
        mesh__slices=slices,
        data__rows_per_step=16,
        data__images_per_row=1.5,
        data__image_groups=4,
        train__trainable=("vit", "vit_head", "resampler", "decoder"),
        compute__loss_chunk=40,
    )
    devices = jax.devices()[: max(1, slices * abs(data) * fsdp * tensor)]
    mesh = make_mesh(config.mesh, devices)
    abstract = abstract_state(config, mesh)
    fresh: dict[str, Any] = dict.fromkeys(("vit", "resampler", "decoder"))
    step_fn = make_train_step(config, mesh, abstract)
    answers: dict[str, np.ndarray] = {}
    first = 0
    if workdir and (Path(workdir) / "checkpoints").exists():
        resumed = resume(epath.Path(workdir), abstract, None, LocalCheckpoints("", workdir))
        assert resumed
        first, state, _ = resumed
    elif workdir:
        _, state, _ = begin(config, epath.Path(workdir), fresh, abstract)
    else:
        params = initial_params(config, fresh, merge(abstract.trainable, abstract.frozen))
        trainable, frozen = split(params, config.train.trainable)
        optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
        state = State(jax.numpy.zeros((), jax.numpy.int32), trainable, frozen, optimizer.init(trainable))
    for seed in range(first, first + 2):
        batch = put_batch(tiny_run.random_batch(config, seed), config.data, mesh)
        state, metrics = step_fn(state, batch)
        for key, value in metrics.items():
            answers[f"{key}_{seed}"] = np.asarray(value)
    if workdir and not first:
        with Checkpoints(workdir, keep=1) as checkpoints:
            checkpoints.save(2, state.trainable, state.opt_state, {})
    for name, tree in (("param", state.trainable), ("mu", state.opt_state[1].mu)):
        for path, leaf in flatten(tree).items():
            answers[f"{name}/{'/'.join(path)}"] = np.asarray(leaf)
    kernel = state.trainable["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    answers["shard"] = np.asarray(kernel.addressable_shards[0].data.shape)
    np.savez(output, allow_pickle=False, **answers)


if __name__ == "__main__":
    data, fsdp, tensor, slices = map(int, sys.argv[2:6])
    main(sys.argv[1], data, fsdp, tensor, slices, *sys.argv[6:])
