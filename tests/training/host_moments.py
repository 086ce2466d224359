"""Steps of the tiny model with moments in the one memory and in the other; compares all bits.

Usage: host_moments.py DATA FSDP TENSOR, in a process with as many devices; or imported for one device.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.checkpoint.restore import initial_params
from qwenvl_jax.config import Config
from qwenvl_jax.params import merge, split
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import check_memory, make_mesh
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import State, abstract_state, shardings_of
from qwenvl_jax.training.step import Metrics, TrainStep, make_train_step
from tests.support import tiny_run


def configure(memory: str, **changes: Any) -> Config:
    changes = {"data__images_per_row": 2.0, "data__sequence_length": 24, **changes}
    return tiny_run.make_config(optimizer__moments_memory=memory, **changes)


def begin(config: Config) -> State:
    """A fresh state where its config wants it."""
    mesh = make_mesh(config.mesh)
    check_memory(config.optimizer.moments_memory, mesh)
    abstract = abstract_state(config, mesh)
    fresh: dict[str, Any] = dict.fromkeys(("vit", "resampler", "decoder"))
    trainable, frozen = split(
        initial_params(config, fresh, merge(abstract.trainable, abstract.frozen)), config.train.trainable
    )
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings_of(abstract.opt_state))(trainable)
    return State(jnp.zeros((), jnp.int32), trainable, frozen, opt_state)


@functools.cache
def step_of(config: Config) -> TrainStep:
    mesh = make_mesh(config.mesh)
    return make_train_step(config, mesh, abstract_state(config, mesh))


def advance(config: Config, state: State, seeds: range) -> tuple[State, Metrics]:
    """Takes one step per seed."""
    step = step_of(config)
    for seed in seeds:
        state, metrics = step(state, put_batch(tiny_run.random_batch(config, seed), config.data, step.mesh))
    return state, metrics


def memories(state: State) -> set[str]:
    """Where the moments lie."""
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves((state.opt_state[1].mu, state.opt_state[1].nu))}


def assert_same_bits(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def main(data: int, fsdp: int, tensor: int) -> None:
    states = {}
    for memory in ("device", "pinned_host"):
        config = configure(memory, data__rows_per_step=16, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
        states[memory], _ = advance(config, begin(config), range(3))
        assert memories(states[memory]) == {memory}
    kernel = states["pinned_host"].opt_state[1].mu["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32 // fsdp, 48 // tensor)
    assert_same_bits(states["device"], states["pinned_host"])
    print("equal")


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]))
