"""The device side of generation: slots that prompts are put into, and a loop that continues all of them.

A slot is a row of the key-value cache. Its prompt starts in column 0 and its answer follows, so a slot that has ended
takes a new prompt while its neighbours go on. Every row is computed by itself: which prompts share the slots changes no
answer.

Shape suffixes: B slots, R prompts that are put in at once, L prompt tokens, T columns of the cache, M new tokens,
C stored pictures, Q features of a picture, F = C * Q, I images, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from qwenvl_jax.evaluation.generation.sampling import Limits, RowOptions, Sampling, chosen, chosen_by_row
from qwenvl_jax.models.cache import Cache
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.models.parallel import rows_split
from qwenvl_jax.sharding.compiler import compiler_options
from qwenvl_jax.sharding.mesh import AXES, BATCH_AXES


class Slots(NamedTuple):
    """The state of all slots.

    Attributes:
      cache: keys and values of prompts and answers.
      token_B: int32, the newest token, which is not in the cache yet.
      cached_B: int32, columns of the cache that are filled.
      count_B: int32, tokens of the answer so far.
      alpha_B: float32, the NTK factor of the prompt.
      seed_B: uint32, of sampling.
      active_B: bool, whether the answer goes on.
      new_BM: int32, the answer, -1 behind its end.
    """

    cache: Cache
    token_B: jax.Array
    cached_B: jax.Array
    count_B: jax.Array
    alpha_B: jax.Array
    seed_B: jax.Array
    active_B: jax.Array
    new_BM: jax.Array


class Prompts(NamedTuple):
    """Prompts that are put into slots, padded on the right.

    Attributes:
      tokens_RL: int32.
      image_slot_RL: int32, index into the stored features, or -1 for text.
      length_R: int32; 0 for a row without a prompt.
      seed_R: uint32, of sampling.
      slot_R: int32, the slot of each; B, behind the last one, for a row without a prompt.
    """

    tokens_RL: jax.Array
    image_slot_RL: jax.Array
    length_R: jax.Array
    seed_R: jax.Array
    slot_R: jax.Array


@functools.partial(jax.jit, static_argnames=("count", "columns", "max_new_tokens"))
def empty_slots(model: LoadedModel, count: int, columns: int, max_new_tokens: int) -> Slots:
    """Slots of which none is active."""
    zeros_B = jnp.zeros(count, jnp.int32)
    return placed(
        Slots(
            model.init_cache(count, columns),
            zeros_B,
            zeros_B,
            zeros_B,
            jnp.ones(count, jnp.float32),
            jnp.zeros(count, jnp.uint32),
            jnp.zeros(count, bool),
            jnp.full((count, max_new_tokens), -1, jnp.int32),
        )
    )


def placed(state: Any) -> Any:
    """The state of slots, or of beams, with its cache split by slots and heads and the rest on every device.

    So every process can read it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names):
        return state

    rows = BATCH_AXES if rows_split(state.cache.rows) else None
    split = P(rows, "tensor", None, None)
    stack = P(None, *split)
    cache, *small = state
    cache = jax.lax.with_sharding_constraint(cache, stack if cache.stacked else split)
    return type(state)(cache, *map(everywhere, small))


def everywhere(value: jax.Array) -> jax.Array:
    """A result that is on every device, so that every process can read it."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(value, P()) if set(AXES) <= set(mesh.axis_names) else value


class Prefilled(NamedTuple):
    """Prompts that the model has read.

    Attributes:
      length_R: int32, tokens of the prompt; 1 for a row without a prompt.
      alpha_R: float32, the NTK factor.
      logits_RV: float32, of the first token of the answer.
      cache: keys and values of the prompts, one row each.
    """

    length_R: jax.Array
    alpha_R: jax.Array
    logits_RV: jax.Array
    cache: Cache


def prefill(model: LoadedModel, prompts: Prompts, features_CQD: jax.Array | None) -> Prefilled:
    """Runs prompts.

    Args:
      model: the model that is asked.
      prompts: `slot_R` and `seed_R` are not used.
      features_CQD: stored pictures; None if no prompt has one.
    """
    rows, width = prompts.tokens_RL.shape
    length_R = jnp.maximum(prompts.length_R, 1)
    column_L = jnp.arange(width)
    valid_RL = column_L < length_R[:, None]
    features_FD = None if features_CQD is None else features_CQD.reshape(-1, features_CQD.shape[-1])
    embeddings_RLD = model.embed(prompts.tokens_RL, prompts.image_slot_RL, features_FD)
    positions_RL = jnp.broadcast_to(column_L, (rows, width))
    hidden_RLD, cache = model.prefill(embeddings_RLD, positions_RL, valid_RL, model.init_cache(rows, width))
    logits_RV = model.logits(hidden_RLD[jnp.arange(rows), length_R - 1])
    return Prefilled(length_R, model.ntk_alpha(length_R), logits_RV, cache)


def put(into_B: jax.Array, values_R: jax.Array, slot_R: jax.Array) -> jax.Array:
    """The state of all slots [B, ..] with the values of new prompts [R, ..]; slots behind the last one are dropped."""
    return into_B.at[slot_R].set(values_R, mode="drop")


def put_prompts(into: Cache, prompts: Cache, row_R: jax.Array) -> Cache:
    """The cache of all slots with the keys and values of new prompts at the start of the rows `row_R`."""

    def put_columns(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[..., row_R, :, : prompts.columns, :].set(new, mode="drop")

    return jax.tree.map(put_columns, into, prompts)


@functools.partial(jax.jit, static_argnames=("limits", "sampling"), donate_argnames="slots")
def fill(
    model: LoadedModel,
    slots: Slots,
    prompts: Prompts,
    features_CQD: jax.Array | None,
    options: RowOptions | None = None,
    *,
    limits: Limits,
    sampling: Sampling | None,
) -> Slots:
    """Runs prompts, stores their keys and values in their slots, and chooses the first token of each answer.

    If answers differ in how they are sampled, `sampling` is None and `options` has a row for every prompt.
    """
    read = prefill(model, prompts, features_CQD)
    slot_R = prompts.slot_R
    zero_R = jnp.zeros_like(read.length_R)
    token_R = _next(read.logits_RV, zero_R, prompts.seed_R, options, limits, sampling)
    ended_R = jnp.isin(token_R, jnp.asarray(limits.stop_ids, jnp.int32))

    none_RM = jnp.full((len(slot_R), slots.new_BM.shape[1]), -1, jnp.int32)
    answer_RM = none_RM.at[:, 0].set(jnp.where(ended_R, -1, token_R))
    return placed(
        Slots(
            put_prompts(slots.cache, read.cache, slot_R),
            put(slots.token_B, token_R, slot_R),
            put(slots.cached_B, read.length_R, slot_R),
            put(slots.count_B, zero_R + 1, slot_R),
            put(slots.alpha_B, read.alpha_R, slot_R),
            put(slots.seed_B, prompts.seed_R, slot_R),
            put(slots.active_B, ~ended_R & (_most(options, limits) > 1), slot_R),
            put(slots.new_BM, answer_RM, slot_R),
        )
    )


@functools.partial(jax.jit, static_argnames=("limits", "sampling"), donate_argnames="slots")
def advance(
    model: LoadedModel,
    slots: Slots,
    steps: jax.Array,
    leave: jax.Array,
    options: RowOptions | None = None,
    *,
    limits: Limits,
    sampling: Sampling | None,
) -> Slots:
    """Continues the answers of active slots by up to `steps` tokens.

    It ends earlier once at most `leave` slots are active: then others can take new prompts. If answers differ in how
    they are sampled, `sampling` is None and `options` has a row for every slot.
    """
    stops = jnp.asarray(limits.stop_ids, jnp.int32)
    columns = slots.cache.columns
    everything_BT = jnp.ones((len(slots.token_B), columns), bool)

    def goes_on(state: tuple[jax.Array, Slots]) -> jax.Array:
        step, slots = state
        active = jnp.sum(slots.active_B, dtype=jnp.int32)
        return (step < steps) & (active > leave) & (active > 0)

    def step(state: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        step, slots = state
        active_B = slots.active_B
        hidden_BD, cache = model.decode_step(
            slots.token_B, slots.cached_B, everything_BT, slots.cached_B, slots.cache, slots.alpha_B
        )
        token_B = _next(model.logits(hidden_BD), slots.count_B, slots.seed_B, options, limits, sampling)
        ended_B = jnp.isin(token_B, stops)
        written_B = jnp.where(active_B & ~ended_B, token_B, -1)
        rows = jnp.arange(len(token_B))
        column_B = jnp.where(active_B, slots.count_B, slots.new_BM.shape[1])  # an ended answer is left as it is
        count_B = slots.count_B + active_B
        return step + 1, Slots(
            cache,
            jnp.where(active_B, token_B, slots.token_B),
            slots.cached_B + active_B,
            count_B,
            slots.alpha_B,
            slots.seed_B,
            active_B & ~ended_B & (count_B < _most(options, limits)),
            slots.new_BM.at[rows, column_B].set(written_B, mode="drop"),
        )

    return placed(jax.lax.while_loop(goes_on, step, (jnp.int32(0), slots))[1])


def _next(
    logits_BV: jax.Array,
    count_B: jax.Array,
    seed_B: jax.Array,
    options: RowOptions | None,
    limits: Limits,
    sampling: Sampling | None,
) -> jax.Array:
    """The next token of every row, by one rule for all or by each row's own."""
    if options is not None:
        return chosen_by_row(logits_BV, count_B, seed_B, limits, options)
    assert sampling is not None
    return chosen(logits_BV, count_B, seed_B, limits, sampling)


def _most(options: RowOptions | None, limits: Limits) -> jax.Array | int:
    """The largest number of new tokens, of all rows or of each."""
    return limits.max_new_tokens if options is None else options.max_new_tokens_B


def advance_on(mesh: Mesh | None) -> Any:
    """`advance`, compiled with the options for the devices of a mesh (`sharding.compiler`)."""
    return _advance_with(tuple(sorted(compiler_options(mesh).items())) if mesh else ())


@functools.cache
def _advance_with(options: tuple[tuple[str, bool | int | str], ...]) -> Any:
    if not options:
        return advance
    static = ("limits", "sampling")
    return jax.jit(
        inspect.unwrap(advance), static_argnames=static, donate_argnames="slots", compiler_options=dict(options)
    )


@functools.partial(jax.jit, static_argnames="columns")
def widened(state: Any, columns: int) -> Any:
    """The same slots, or beams, with more columns in the cache."""
    extra = columns - state.cache.columns

    def with_more(part: jax.Array) -> jax.Array:
        return jnp.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, extra), (0, 0)])

    return placed(state._replace(cache=jax.tree.map(with_more, state.cache)))


@functools.partial(jax.jit, static_argnames="count")
def empty_features(model: LoadedModel, count: int) -> jax.Array:
    """Room for the features of pictures, [C, Q, D] in the compute dtype."""
    config = model.config
    return jnp.zeros((count, config.resampler.queries, config.decoder.width), model.compute.compute_dtype)


@functools.partial(jax.jit, donate_argnames="features_CQD")
def store(model: LoadedModel, features_CQD: jax.Array, images_IHWC: jax.Array, index_I: jax.Array) -> jax.Array:
    """Encodes images, and stores the features of each under its index; those behind the last index are dropped."""
    features_FD = model.encode_images(images_IHWC)
    return features_CQD.at[index_I].set(features_FD.reshape(len(images_IHWC), *features_CQD.shape[1:]), mode="drop")
