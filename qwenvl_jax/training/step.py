"""One optimiser step: microbatches accumulated, gradients of the trainable tree, one update.

The loss is the sum of token losses over the batch, divided by its supervised tokens. Every microbatch is divided by
the tokens of the whole batch, so that accumulation and sharding change nothing but rounding.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels, D width, S sources.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import Config
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.models import lora, qwen_vl
from qwenvl_jax.params import Params, PyTree, is_trained, merge
from qwenvl_jax.runtime.errors import UserError, one_line
from qwenvl_jax.sharding.batch import batch_shardings
from qwenvl_jax.sharding.compiler import compiler_options
from qwenvl_jax.sharding.mesh import BATCH_AXES
from qwenvl_jax.sharding.rules import replicated
from qwenvl_jax.training.loss import sum_by_source, token_loss_sum
from qwenvl_jax.training.means import judge
from qwenvl_jax.training.optimizer import make_optimizer, make_schedule
from qwenvl_jax.training.state import State, shardings_of

Metrics = dict[str, jax.Array]
_Sums = tuple[tuple[jax.Array, jax.Array], Params]  # of losses (whole, by source) and gradients over microbatches


def microbatch_loss(
    trainable: Params,
    frozen: Params,
    micro: Any,
    total_tokens: jax.Array,
    config: Config,
    mesh: Mesh,
    source_count: int | None = None,
    step: jax.Array | int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The share of one microbatch (a `Batch` without its axis A) in the loss of the batch.

    Args:
      trainable, frozen: the parameters.
      micro: on the devices.
      total_tokens: supervised tokens of the whole batch, float32 scalar.
      config: the run's.
      mesh: of the devices.
      source_count: S, if `micro.sources` does not count the sources of the mixture.
      step: number of the step that is trained, counted from 0, for the dropout of adapters; None: no dropout.

    Returns:
      The share, a float32 scalar, and the sums of the token losses by source, float32 [S], which have no gradient.
    """
    rows = NamedSharding(mesh, P(BATCH_AXES))
    params = merge(trainable, frozen)
    images = micro.images if config.data.images_per_row else None
    if config.lora.rank and step is not None:
        params = lora.with_dropout(params, config.lora, config.train.seed, step, micro.tokens, images)
    hidden_BLD = qwen_vl.forward(
        params,
        config.model,
        config.compute,
        tokens_BL=micro.tokens,
        segment_ids_BL=micro.segment_ids,
        positions_BL=micro.positions,
        image_slot_BL=micro.image_slot,
        images_IHWC=images,
        image_groups=config.data.groups,
    )
    hidden_BLD = jax.lax.with_sharding_constraint(hidden_BLD, rows)
    with jax.named_scope("loss"):
        sums = token_loss_sum(
            hidden_BLD,
            micro.targets,
            micro.loss_mask,
            micro.sources,
            params["decoder"]["lm_head"],
            source_count or len(config.data.mixture),
            config.compute.loss_chunk,
            is_trained(("decoder", "lm_head"), config.train.trainable),
        )
    return sums.total / total_tokens, sums.by_source_S


class TrainStep(NamedTuple):
    """The jitted step and the mesh that it runs on."""

    jitted: Any
    mesh: Mesh

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes one step; all buffers of `state` but those of `.frozen` are donated."""
        with jax.set_mesh(self.mesh), _unknown_options_told():
            (step, trainable, opt_state, means), metrics = self.jitted(
                state.step, state.trainable, state.opt_state, state.means, state.frozen, batch
            )
        return State(step, trainable, state.frozen, opt_state, means), metrics

    def compile_ahead(self, state: State, batch: Batch) -> None:
        """Compiles the step for these shapes and shardings, on any thread.

        JAX keeps the program, so calls with such arrays compile nothing.
        """
        with _unknown_options_told():
            self.lower(state, batch).compile()

    def lower(self, state: State, batch: Batch) -> Any:
        """The lowered step, to be compiled ahead of time or analysed. Takes shapes; allocates nothing."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(state.step, state.trainable, state.opt_state, state.means, state.frozen, batch)


@contextlib.contextmanager
def _unknown_options_told() -> Iterator[None]:
    """Turns the error of the compiler about an unknown option into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            raise UserError(
                f"the compiler refuses an option of config.compute.xla_options ({one_line(error)}); leave it out"
            ) from error
        raise


def make_train_step(config: Config, mesh: Mesh, abstract: State) -> TrainStep:
    """The jitted step: (state, batch on the devices) -> (state, metrics); it consumes its state.

    Metrics are scalars on the devices: `loss` (nats per supervised token), `grad_norm` (over trainable gradients,
    before clipping), `learning_rate`, `tokens` (not padding), `supervised_tokens`, `images`, and `skipped`, which is 1
    if the step was an anomaly (`config.anomalies`) and its update was left out. Two are float32 [S], an entry per
    source of `config.data.mixture`: `loss_sum_by_source` (nats) and `supervised_by_source` (tokens).

    Args:
      config: the run's.
      mesh: of its devices, or of devices that are only described (ahead of time).
      abstract: from `abstract_state` of the same config and mesh.
    """
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    schedule = make_schedule(config.optimizer, config.train.steps)
    shardings = shardings_of(abstract)
    loss_and_gradients = jax.value_and_grad(microbatch_loss, has_aux=True)

    def step_fn(
        step: jax.Array, trainable: Params, opt_state: PyTree, means: PyTree, frozen: Params, batch: Batch
    ) -> tuple[tuple[jax.Array, Params, PyTree, PyTree], Metrics]:
        supervised = jnp.sum(batch.loss_mask)
        total = jnp.maximum(supervised, 1.0)

        def accumulate(sums: _Sums, micro: Batch) -> tuple[_Sums, None]:
            losses, gradients = loss_and_gradients(trainable, frozen, micro, total, config, mesh, step=step)
            gradients = jax.lax.with_sharding_constraint(gradients, shardings.trainable)
            return jax.tree.map(jnp.add, sums, (losses, gradients)), None

        no_losses = (jnp.zeros((), jnp.float32), jnp.zeros(len(config.data.mixture), jnp.float32))
        zeros = (no_losses, jax.tree.map(jnp.zeros_like, trainable))
        ((loss, by_source_S), gradients), _ = jax.lax.scan(accumulate, zeros, batch)
        grad_norm = optax.global_norm(gradients)
        regular, means = judge(config.anomalies, loss, grad_norm, means)

        def update(trainable: Params, opt_state: PyTree) -> tuple[Params, PyTree]:
            updates, opt_state = optimizer.update(gradients, opt_state, trainable, step=step)
            return optax.apply_updates(trainable, updates), opt_state

        new_trainable, new_opt_state = _update_if(regular, update, trainable, opt_state, shardings.opt_state)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(step),
            "supervised_tokens": supervised,
            "skipped": 1 - regular.astype(jnp.int32),
            "loss_sum_by_source": by_source_S,
        }
        return (step + 1, new_trainable, new_opt_state, means), metrics | _counts(batch, config)

    # The frozen tree is a separate argument that is neither donated nor returned: its buffers are never rewritten.
    changing = (shardings.step, shardings.trainable, shardings.opt_state, shardings.means)
    jitted = jax.jit(
        step_fn,
        donate_argnums=(0, 1, 2, 3),
        in_shardings=(*changing, shardings.frozen, batch_shardings(mesh)),
        out_shardings=(changing, replicated(mesh)),
        compiler_options=compiler_options(mesh, config.compute.xla_options) or None,
    )
    return TrainStep(jitted, mesh)


def _counts(batch: Any, config: Config) -> Metrics:
    """The metrics of `make_train_step` that count parts of a `Batch` on the devices."""
    return {
        "tokens": jnp.sum(batch.segment_ids > 0),
        "images": jnp.sum(batch.image_slot >= 0) // config.model.resampler.queries,
        "supervised_by_source": sum_by_source(batch.loss_mask, batch.sources, len(config.data.mixture)),
    }


def _update_if(
    regular: jax.Array,
    update: Callable[[Params, PyTree], tuple[Params, PyTree]],
    trainable: Params,
    opt_state: PyTree,
    shardings: PyTree,
) -> tuple[Params, PyTree]:
    """`update(trainable, opt_state)` if `regular` is true, otherwise both unchanged.

    Args:
      regular: bool scalar.
      update: computes new parameters and a new optimiser state on the devices.
      trainable, opt_state: the old ones.
      shardings: of `opt_state`; its moments may be in the host's memory.
    """
    old = (trainable, opt_state)
    on_devices = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings)
    if all(sharding.memory_kind in (None, "device") for sharding in jax.tree.leaves(shardings)):
        return jax.tree.map(functools.partial(jnp.where, regular), update(*old), old)

    def fetch_and_update(trainable: Params, opt_state: PyTree) -> tuple[Params, PyTree]:
        new_trainable, new_opt_state = update(trainable, jax.device_put(opt_state, on_devices))
        return new_trainable, jax.device_put(new_opt_state, shardings)

    # Only a conditional makes the compiler wait for the gradients before it fetches the moments.
    return jax.lax.cond(regular, fetch_and_update, lambda *unchanged: unchanged, *old)
