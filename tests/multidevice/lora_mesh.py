"""A step on low-rank adapters with dropout, for a process of four virtual CPU devices: each mesh equals one device.

The last line of the output is JSON: by mesh, beside plain and beside quantised kernels, the largest difference of the
loss and of a moment, relative to the largest moment, and how the adapters of one projection are split.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.config import Config, LoraConfig, MeshConfig
from qwenvl_jax.models import lora, quantised
from qwenvl_jax.params import LORA_B, flatten, split, unflatten
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import State, abstract_state, shardings_of
from qwenvl_jax.training.step import make_train_step
from tests.support import tiny_run

MESHES = {
    "plain": {"fsdp 2": (1, 2, 1), "data 2": (2, 1, 1), "fsdp 2, tensor 2": (1, 2, 2)},
    "nf4": {"fsdp 2, tensor 2": (1, 2, 2)},
}
TARGETS = ("decoder/blocks/attn/qkv", "decoder/blocks/attn/out", "decoder/blocks/mlp/up", "decoder/blocks/mlp/down")


def step(
    config: Config, axes: tuple[int, int, int], kernels: str = "plain"
) -> tuple[float, dict[str, np.ndarray], str]:
    data, fsdp, tensor = axes
    compute = dataclasses.replace(config.compute, frozen_kernels=kernels)
    config = dataclasses.replace(config, mesh=MeshConfig(data, fsdp, tensor, 1, 0), compute=compute)
    mesh = make_mesh(config.mesh, jax.devices()[: data * fsdp * tensor])
    abstract = abstract_state(config, mesh)
    rng = np.random.default_rng(0)
    leaves = flatten(lora.init_params(config.model, config.lora, jax.random.key(3)))
    for path, leaf in leaves.items():
        if path[-1] == LORA_B:
            leaves[path] = leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    for path, stored in quantised.kernels(abstract.frozen).items():
        leaves |= quantised.quantise_like(path, leaves.pop(path), stored)
    trainable, frozen = split(unflatten(leaves), config.train.trainable)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    state = State(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))
    state = jax.device_put(state, shardings_of(abstract))
    batch = put_batch(tiny_run.random_batch(config), config.data, mesh)
    after, metrics = make_train_step(config, mesh, abstract)(state, batch)
    moments: Any = after.opt_state[1].mu
    b = flatten(abstract.trainable)[("decoder", "blocks", "mlp", "down", LORA_B)]
    return (
        float(metrics["loss"]),
        {"/".join(k): np.asarray(v) for k, v in flatten(moments).items()},
        str(b.sharding.spec),
    )


def main() -> None:
    config = tiny_run.make_config(
        data__images_per_row=2.0, data__sequence_length=24, data__image_groups=0, compute__unroll_layers=False
    )
    config = dataclasses.replace(
        config,
        lora=LoraConfig(4, 6.0, 0.3, TARGETS),
        train=dataclasses.replace(config.train, trainable=("lora",)),
    )
    answer = {}
    for kernels, meshes in MESHES.items():
        loss, moments, _ = step(config, (1, 1, 1), kernels)
        scale = max(np.abs(moment).max() for moment in moments.values())
        for name, axes in meshes.items():
            other, others, spec = step(config, axes, kernels)
            worst = max(float(np.abs(moment - others[path]).max()) for path, moment in moments.items())
            figures = {"loss": abs(other - loss) / loss, "moments": worst / float(scale), "split": spec}
            answer[f"{kernels}: {name}"] = figures
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
