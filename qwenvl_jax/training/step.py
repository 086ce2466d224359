"""One optimiser step: microbatches accumulated, gradients of the trainable tree, one update.

The loss is the sum of token losses over the global batch divided by its supervised tokens. Every microbatch is
divided by the tokens of the whole batch, so that accumulation and sharding change nothing but rounding.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels, D width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.compiler import compiler_options
from qwenvl_jax.sharding.mesh import BATCH_AXES, AnyMesh, batch_shards
from qwenvl_jax.sharding.rules import batch_shardings, param_shardings, replicated
from qwenvl_jax.training.loss import token_loss_sum
from qwenvl_jax.training.optimizer import make_optimizer, make_schedule
from qwenvl_jax.training.partition import abstract_split, merge

Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """What a run holds on its devices.

    Attributes:
      step: int32 scalar, global batches taken so far.
      trainable: float32 master weights of the trained components.
      frozen: the rest, in `config.compute.frozen_dtype`.
      opt_state: optax state over `trainable`; its moments lie in `config.optimizer.moments_memory`.
    """

    step: Any
    trainable: Any
    frozen: Any
    opt_state: Any


def abstract_state(config: Config, mesh: AnyMesh | None = None) -> State:
    """Shapes, dtypes and (with a mesh) shardings of the state; allocates nothing."""
    params = qwen_vl.abstract_params(config.model)
    trainable, frozen = abstract_split(params, config.train.trainable, config.compute.frozen_dtype)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    opt_state = jax.eval_shape(optimizer.init, trainable)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), trainable, frozen, opt_state)
    if mesh is None:
        return state
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, optimizer, mesh, config.optimizer.moments_memory),
    )


def state_shardings(state: State, optimizer: optax.GradientTransformation, mesh: AnyMesh, moments_memory: str) -> State:
    """Moments are split as their parameters are, in `moments_memory`; counters are on every device."""
    trainable = param_shardings(state.trainable, mesh)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding.with_memory_kind(moments_memory),
        state.opt_state,
        trainable,
        transform_non_params=lambda _: replicated(mesh),
    )
    return State(replicated(mesh), trainable, param_shardings(state.frozen, mesh), opt_state)


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shapes and shardings of one batch on the devices."""
    data, shards = config.data, batch_shards(mesh)
    rows = (data.accumulation, data.rows, data.sequence_length)
    images = data.image_budget + data.groups * spare_images(data, shards)
    shapes: dict[str, Any] = dict.fromkeys(Batch._fields, (rows, jnp.int32))
    shapes["loss_mask_ABL"] = (rows, jnp.float32)
    shapes["images_AIHWC"] = ((data.accumulation, images, data.image_size, data.image_size, 3), jnp.uint8)
    shardings = batch_shardings(mesh)
    fields: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(*shape, sharding=getattr(shardings, name)) for name, shape in shapes.items()
    }
    return Batch(**fields)


def spare_images(data: DataConfig, shards: int) -> int:
    """Empty images at the end of every image group, so that what whole groups fill ends where a device's part does.

    As many as the devices need that hold whole groups together (`models.parallel.take_features`); none if every
    device holds whole groups.
    """
    return -data.group_images % (shards // math.gcd(data.groups, shards))


def local_streams(data: DataConfig, mesh: Mesh) -> list[int]:
    """The logical streams of the input that hold rows of this process's devices, ascending."""
    shards = batch_shards(mesh)
    places = batch_shardings(mesh)[0].addressable_devices_indices_map((1, shards)).values()
    return streams_of([rows.indices(shards)[0] for _, rows in places], shards, data.streams)


def streams_of(parts: Iterable[int], shards: int, streams: int) -> list[int]:
    """The streams that some of `shards` equal parts of a microbatch need, ascending; they need not be neighbours."""
    found: set[int] = set()
    for part in parts:
        found.update(range(part * streams // shards, -(-(part + 1) * streams // shards)))
    return sorted(found)


def local_slice(start: int, stop: int, part: int, streams: list[int]) -> slice:
    """Where rows (or images) start to stop of a global batch lie among those of some streams of `part` rows each."""
    first = streams.index(start // part) * part + start % part
    return slice(first, first + stop - start)


def put_batch(batch: Batch, data: DataConfig, mesh: Mesh) -> Batch:
    """Copies a numpy batch to the devices, split by rows and images; returns before the copy is done.

    Every image group is padded with empty images to what the mesh splits evenly. Where several processes run, each
    brings the parts of its `local_streams`.
    """
    streams = local_streams(data, mesh)
    spare = spare_images(data, batch_shards(mesh))
    if spare:
        micro, _, *pixels = batch.images_AIHWC.shape
        groups = batch.images_AIHWC.reshape(micro, data.groups * len(streams) // data.streams, -1, *pixels)
        groups = np.pad(groups, ((0, 0), (0, 0), (0, spare), *[(0, 0)] * 3))
        batch = batch._replace(images_AIHWC=groups.reshape(micro, -1, *pixels))
    shardings = batch_shardings(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)

    def put(field: np.ndarray, sharding: NamedSharding) -> jax.Array:
        part = field.shape[1] // len(streams)  # rows or images of a stream
        shape = (field.shape[0], part * data.streams, *field.shape[2:])

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(shape[1])
            return field[:, local_slice(start, stop, part, streams)]

        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, batch, shardings)


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
        tokens_BL=micro.tokens_ABL,
        segment_ids_BL=micro.segment_ids_ABL,
        positions_BL=micro.positions_ABL,
        image_slot_BL=micro.image_slot_ABL,
        images_IHWC=micro.images_AIHWC if config.data.images_per_row else None,
        image_groups=config.data.groups,
    )
    hidden_BLD = jax.lax.with_sharding_constraint(hidden_BLD, rows)
    with jax.named_scope("loss"):
        loss = token_loss_sum(
            hidden_BLD,
            micro.targets_ABL,
            micro.loss_mask_ABL,
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
        supervised = jnp.sum(batch.loss_mask_ABL)
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
            "tokens": jnp.sum(batch.segment_ids_ABL > 0),
            "supervised_tokens": supervised,
            "images": jnp.sum(batch.image_slot_ABL >= 0) // queries,
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
