"""One optimiser step: microbatches accumulated, gradients of the trainable tree, one update.

The loss is the sum of token losses over the global batch divided by its supervised tokens. Every microbatch is
divided by the tokens of the whole batch, so that accumulation and sharding change nothing but rounding.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels, D width.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import Config
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import merge
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import batch_shardings
from qwenvl_jax.sharding.compiler import compiler_options
from qwenvl_jax.sharding.mesh import BATCH_AXES
from qwenvl_jax.sharding.rules import replicated
from qwenvl_jax.training.loss import token_loss_sum
from qwenvl_jax.training.optimizer import make_optimizer, make_schedule
from qwenvl_jax.training.state import State, abstract_state, state_shardings

Metrics = dict[str, jax.Array]


def microbatch_loss(
    trainable: Any, frozen: Any, micro: Any, total_tokens: jax.Array, config: Config, mesh: Mesh
) -> jax.Array:
    """Share of one microbatch (a `Batch` without its axis A) in the loss of the global batch, float32 scalar."""
    rows = NamedSharding(mesh, P(BATCH_AXES))
    params = merge(trainable, frozen)
    hidden_BLD = qwen_vl.forward(
        params,
        config.model,
        config.compute,
        tokens_BL=micro.tokens,
        segment_ids_BL=micro.segment_ids,
        positions_BL=micro.positions,
        image_slot_BL=micro.image_slot,
        images_IHWC=micro.images if config.data.images_per_row else None,
        image_groups=config.data.groups,
    )
    hidden_BLD = jax.lax.with_sharding_constraint(hidden_BLD, rows)
    with jax.named_scope("loss"):
        loss = token_loss_sum(
            hidden_BLD,
            micro.targets,
            micro.loss_mask,
            params["decoder"]["lm_head"],
            config.compute.loss_chunk,
            "decoder" in config.train.trainable,
        )
    return loss / total_tokens


class TrainStep(NamedTuple):
    """The jitted step and the mesh it is meant for. `lower` takes a state and a batch of shapes."""

    compiled: Any
    mesh: Mesh

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        try:
            with jax.set_mesh(self.mesh):
                (step, trainable, opt_state), metrics = self.compiled(
                    state.step, state.trainable, state.opt_state, state.frozen, batch
                )
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" in str(error):
                raise UserError(f"the compiler refuses an option of config.compute.xla_options: {error}") from error
            raise
        return State(step, trainable, state.frozen, opt_state), metrics

    def lower(self, state: State, batch: Batch) -> Any:
        """The lowered step, to be compiled ahead of time or analysed; allocates nothing."""
        with jax.set_mesh(self.mesh):
            return self.compiled.lower(state.step, state.trainable, state.opt_state, state.frozen, batch)


def make_train_step(config: Config, mesh: Mesh) -> TrainStep:
    """The compiled step: (state, batch on the devices) -> (state, metrics); it consumes its state.

    Metrics are scalars on the devices: `loss` (nats per supervised token), `grad_norm` (over trainable gradients,
    before clipping), `learning_rate`, `tokens` (not padding), `supervised_tokens`, `images`, and `skipped`, 1 where
    loss or gradients were not finite and the update was left out.
    """
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    schedule = make_schedule(config.optimizer, config.train.steps)
    shardings = state_shardings(abstract_state(config), optimizer, mesh, config.optimizer.moments_memory)
    at_update = state_shardings(abstract_state(config), optimizer, mesh, "device").opt_state
    queries = config.model.resampler.queries

    def step_fn(
        step: jax.Array, trainable: Any, opt_state: Any, frozen: Any, batch: Batch
    ) -> tuple[tuple[jax.Array, Any, Any], Metrics]:
        supervised = jnp.sum(batch.loss_mask)
        total = jnp.maximum(supervised, 1.0)

        def accumulate(carry: tuple[Any, jax.Array], micro: Batch) -> tuple[tuple[Any, jax.Array], None]:
            loss, gradients = jax.value_and_grad(microbatch_loss)(trainable, frozen, micro, total, config, mesh)
            gradients = jax.lax.with_sharding_constraint(gradients, shardings.trainable)
            return (jax.tree.map(jnp.add, carry[0], gradients), carry[1] + loss), None

        zeros = jax.tree.map(jnp.zeros_like, trainable)
        (gradients, loss), _ = jax.lax.scan(accumulate, (zeros, jnp.zeros((), jnp.float32)), batch)

        grad_norm = optax.global_norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def update(trainable: Any, opt_state: Any) -> tuple[Any, Any]:
            updates, new_opt_state = optimizer.update(gradients, opt_state, trainable, step=step)
            return optax.apply_updates(trainable, updates), new_opt_state

        def fetch_and_update(trainable: Any, opt_state: Any) -> tuple[Any, Any]:
            new_trainable, new_opt_state = update(trainable, jax.device_put(opt_state, at_update))
            return new_trainable, jax.device_put(new_opt_state, shardings.opt_state)

        old = trainable, opt_state
        if config.optimizer.moments_memory == "device":
            new = jax.tree.map(functools.partial(jnp.where, finite), update(*old), old)
        else:  # a branch, because only there the compiler waits for the gradients before it fetches the moments
            new = jax.lax.cond(finite, fetch_and_update, lambda *unchanged: unchanged, *old)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(step),
            "tokens": jnp.sum(batch.segment_ids > 0),
            "supervised_tokens": supervised,
            "images": jnp.sum(batch.image_slot >= 0) // queries,
            "skipped": 1 - finite.astype(jnp.int32),
        }
        return (step + 1, *new), metrics

    # The frozen tree is a separate argument that is neither donated nor returned: it stays where it is.
    changing = (shardings.step, shardings.trainable, shardings.opt_state)
    return TrainStep(
        jax.jit(
            step_fn,
            donate_argnums=(0, 1, 2),
            in_shardings=(*changing, shardings.frozen, batch_shardings(mesh)),
            out_shardings=(changing, replicated(mesh)),
            compiler_options=compiler_options(mesh, config.compute.xla_options) or None,
        ),
        mesh,
    )
