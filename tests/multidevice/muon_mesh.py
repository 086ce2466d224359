"""Two updates of Muon on meshes, for a process of four virtual CPU devices: each mesh equals one device.

The last line of the output is JSON: by mesh, the largest difference of an update relative to the largest update, and
how the momentum of one kernel is split.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from qwenvl_jax.params import flatten, unflatten
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import abstract_state, shardings_of
from tests.support import tiny_run

MESHES = {"fsdp 2": (1, 2, 1), "data 2": (2, 1, 1), "fsdp 2, tensor 2": (1, 2, 2)}
KERNEL = ("decoder", "blocks", "mlp", "down", "kernel")


def updates(axes: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], str]:
    data, fsdp, tensor = axes
    config = tiny_run.make_config(
        mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, optimizer__kind="muon", optimizer__warmup_steps=0
    )
    mesh = make_mesh(config.mesh, jax.devices()[: data * fsdp * tensor])
    abstract = abstract_state(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    layout = shardings_of(abstract)

    def random(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        shapes = flatten(abstract.trainable)
        leaves = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
        return jax.device_put(unflatten(leaves), layout.trainable)

    with jax.set_mesh(mesh):
        params = random(0)
        state = jax.jit(optimizer.init, out_shardings=layout.opt_state)(params)
        update = jax.jit(optimizer.update, out_shardings=(layout.trainable, layout.opt_state))
        for step in range(2):
            moved, state = update(random(1 + step), state, params, step=step)
    momentum = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if path[-len(KERNEL) :] == dict_path(KERNEL)
    ]
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten(moved).items()}, str(momentum[0].sharding.spec)


def dict_path(path: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(jax.tree_util.DictKey(key) for key in path)


def main() -> None:
    expected, _ = updates((1, 1, 1))
    largest = max(float(np.abs(value).max()) for value in expected.values())
    answer = {}
    for name, axes in MESHES.items():
        moved, spec = updates(axes)
        assert moved.keys() == expected.keys()
        worst = max(float(np.abs(moved[path] - value).max()) for path, value in expected.items())
        answer[name] = {"updates": worst / largest, "split": spec}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
