"""The state of a run: what it consists of, and its shapes, dtypes and shardings on a mesh.

The abstract state is computed once at the start of a run and passed on: to the tables, to initialisation, to
restoring and to the training step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from qwenvl_jax.config import Config
from qwenvl_jax.models import lora, quantised
from qwenvl_jax.params import Params, PyTree, abstract_split, merge
from qwenvl_jax.sharding.batch import check_batch
from qwenvl_jax.sharding.mesh import AnyMesh
from qwenvl_jax.sharding.report import check_replicated, parameter_lines
from qwenvl_jax.sharding.rules import check_heads, param_shardings, replicated
from qwenvl_jax.training.means import no_means
from qwenvl_jax.training.optimizer import make_optimizer


class State(NamedTuple):
    """What a run holds on its devices: arrays, shapes (`abstract_state`) or shardings (`shardings_of`).

    Attributes:
      step: int32 scalar, steps taken so far.
      trainable: float32 master weights of the trained components.
      frozen: all other parameters, in `config.compute.frozen_dtype`.
      opt_state: optax state over `trainable`; its moments are kept in `config.optimizer.moments_memory`.
      means: running means of loss and gradient norm (`means.Means`), or () if there is no rule for spikes.
    """

    step: PyTree
    trainable: Params
    frozen: Params
    opt_state: PyTree
    means: PyTree = ()


def abstract_state(config: Config, mesh: AnyMesh | None = None) -> State:
    """Shapes and dtypes of the state, and its shardings if there is a mesh. Allocates nothing.

    Args:
      config: the run's.
      mesh: of devices, of devices that are only described (ahead of time), or of sizes alone.

    Raises:
      UserError: if the mesh does not divide the rows of a microbatch, the attention heads or the width of a
        parameter, or leaves a big parameter whole on every device.
    """
    params = lora.abstract_params(config.model, config.lora)
    trainable, frozen = abstract_split(params, config.train.trainable, config.compute.frozen_dtype)
    frozen = quantised.abstract(frozen, config.compute.frozen_kernels)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    opt_state = jax.eval_shape(optimizer.init, trainable)
    means = jax.eval_shape(lambda: no_means(config.anomalies))
    state = State(jax.ShapeDtypeStruct((), jnp.int32), trainable, frozen, opt_state, means)
    if mesh is None:
        return state
    check_batch(config.data.rows_per_microbatch, mesh)
    check_heads(config.model, mesh)
    shardings = _state_shardings(state, optimizer, mesh, config.optimizer.moments_memory)
    check_replicated(parameter_lines(merge(trainable, frozen), mesh), mesh, config.mesh.max_replicated_bytes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def _state_shardings(
    state: State, optimizer: optax.GradientTransformation, mesh: AnyMesh, moments_memory: str
) -> State:
    """Moments are split as their parameters are, in `moments_memory`; counters are whole on every device."""
    trainable = param_shardings(state.trainable, mesh)

    def masked(leaf: object) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    opt_state = optax.tree_map_params(
        optimizer,
        lambda leaf, sharding: leaf if masked(leaf) else sharding.with_memory_kind(moments_memory),
        state.opt_state,
        trainable,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=masked,
    )
    means = jax.tree.map(lambda _: replicated(mesh), state.means)
    return State(replicated(mesh), trainable, param_shardings(state.frozen, mesh), opt_state, means)


def shardings_of(tree: PyTree) -> PyTree:
    """The shardings of a tree of arrays or of shapes, e.g. of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
