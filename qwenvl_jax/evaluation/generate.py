"""Greedy generation with a key-value cache, batched and compiled: one prefill and one loop, both on the device.

Prompts are padded on the left, so that all prompts of a batch end in the same column. Lengths are rounded up to a
multiple of `LENGTH_STEP` and all batches have the same number of rows, so a whole benchmark needs few compilations.

Shape suffixes: B rows, L prompt tokens, M new tokens, T = L + M cached tokens, I images, F features (I * Q), D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.models.qwen_vl import Cache
from qwenvl_jax.runtime.errors import UserError

LENGTH_STEP = 32


@dataclasses.dataclass(frozen=True)
class Limits:
    """When an answer ends.

    Attributes:
      max_new: the largest number of new tokens.
      min_new: the number of new tokens before which no stop id may be chosen (the released scripts' min_new_tokens).
      stop_ids: ids that end an answer; they are not part of it.

    Raises:
      UserError: if the numbers contradict each other.
    """

    max_new: int
    min_new: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new < 1 or not 0 <= self.min_new <= self.max_new:
            raise UserError(
                f"max_new {self.max_new} must be at least 1 and min_new {self.min_new} between 0 and max_new"
            )


def generate(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    limits: Limits,
    *,
    batch_size: int = 1,
) -> list[list[int]]:
    """The greedy continuation of every prompt: the most likely token at each step.

    Args:
      model: the model that is asked.
      prompts: in any order and of any lengths.
      limits: when an answer ends.
      batch_size: prompts that are continued together.

    Returns:
      The new ids of each prompt, in the order of `prompts`.

    Raises:
      UserError: for an empty prompt.
    """
    if any(len(prompt.tokens_L) == 0 for prompt in prompts):
        raise UserError("a prompt without any token cannot be continued; give it some text or an image")
    rows = min(batch_size, len(prompts))
    answers: list[list[int]] = [[] for _ in prompts]
    sizes = [(len(prompt.tokens_L), len(prompt.images_IHWC)) for prompt in prompts]
    for group in group_by_length(sizes, rows):
        new = generate_batch(model, [prompts[index] for index in group], limits, rows)
        for index, ids in zip(group, new, strict=True):
            answers[index] = ids
    return answers


def generate_batch(model: LoadedModel, prompts: Sequence[Prompt], limits: Limits, rows: int) -> list[list[int]]:
    """The continuations of prompts in one batch.

    Args:
      model: the model that is asked.
      prompts: at most `rows`, none of them empty.
      limits: when an answer ends.
      rows: of the compiled batch; rows without a prompt are padding.

    Returns:
      The new ids of each prompt.
    """
    batch = _pad(prompts, rows, model.config.resampler.queries)
    features_FD = _encode(model, batch.images_IHWC) if len(batch.images_IHWC) else None
    new_BM = np.asarray(
        _continue(
            model,
            batch.tokens_BL,
            batch.length_B,
            batch.image_slot_BL,
            features_FD,
            jnp.int32(limits.min_new),
            max_new=limits.max_new,
            stop_ids=tuple(sorted(set(limits.stop_ids))),
        )
    )
    return [[int(token) for token in new_BM[row] if token >= 0] for row in range(len(prompts))]


def group_by_length(sizes: Sequence[tuple[int, int]], rows: int) -> Iterator[list[int]]:
    """Groups prompts of similar length into batches.

    Args:
      sizes: (tokens, images) of every prompt.
      rows: the largest number of prompts in a group.

    Yields:
      The indices of a group's prompts.
    """
    order = sorted(range(len(sizes)), key=lambda index: (*sizes[index], index))
    for start in range(0, len(order), max(1, rows)):
        yield order[start : start + rows]


class _Padded(NamedTuple):
    tokens_BL: np.ndarray
    length_B: np.ndarray
    image_slot_BL: np.ndarray
    images_IHWC: np.ndarray


def _pad(prompts: Sequence[Prompt], rows: int, queries: int) -> _Padded:
    """Left-pads to static shapes. Rows without a prompt have length 0; images are padded to a multiple of `rows`."""
    width = max(len(prompt.tokens_L) for prompt in prompts)
    width = -(-width // LENGTH_STEP) * LENGTH_STEP
    tokens_BL = np.zeros((rows, width), np.int32)
    image_slot_BL = np.full((rows, width), -1, np.int32)
    length_B = np.zeros(rows, np.int32)
    images: list[np.ndarray] = []
    for row, prompt in enumerate(prompts):
        start = width - len(prompt.tokens_L)
        length_B[row] = len(prompt.tokens_L)
        tokens_BL[row, start:] = prompt.tokens_L
        slots_L = prompt.image_query_L
        image_slot_BL[row, start:] = np.where(slots_L >= 0, slots_L + len(images) * queries, -1)
        images.extend(prompt.images_IHWC)
    if not images:
        return _Padded(tokens_BL, length_B, image_slot_BL, np.zeros((0, 1, 1, 3), np.uint8))
    images += [np.zeros_like(images[0])] * (-len(images) % rows)
    return _Padded(tokens_BL, length_B, image_slot_BL, np.stack(images))


@jax.jit
def _encode(model: LoadedModel, images_IHWC: jax.Array) -> jax.Array:
    return model.encode_images(images_IHWC)


class _Progress(NamedTuple):
    """The state of the loop: `chosen` tokens of every row are known, the last one is `token_B`."""

    chosen: jax.Array
    token_B: jax.Array
    new_BM: jax.Array
    done_B: jax.Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("max_new", "stop_ids"))
def _continue(
    model: LoadedModel,
    tokens_BL: jax.Array,
    length_B: jax.Array,
    image_slot_BL: jax.Array,
    features_FD: jax.Array | None,
    min_new: jax.Array,
    *,
    max_new: int,
    stop_ids: tuple[int, ...],
) -> jax.Array:
    """[B, M] new ids, -1 from a row's stop id on."""
    rows, width = tokens_BL.shape
    unused_B = length_B == 0  # rows of padding must not keep the loop running
    length_B = jnp.maximum(length_B, 1)
    column_T = jnp.arange(width + max_new)
    start_B1 = (width - length_B)[:, None]
    valid_BT = column_T >= start_B1
    positions_BL = column_T[:width] - start_B1
    stops = jnp.asarray(stop_ids, jnp.int32)

    def choose(hidden_BD: jax.Array, count: jax.Array) -> jax.Array:
        logits_BV = model.logits(hidden_BD)
        banned = jnp.where(count < min_new, -jnp.inf, 0.0) if stop_ids else 0.0
        return jnp.argmax(logits_BV.at[:, stops].add(banned), axis=-1).astype(jnp.int32)

    def record(
        new_BM: jax.Array, done_B: jax.Array, token_B: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        done_B |= jnp.isin(token_B, stops)
        return new_BM.at[:, count].set(jnp.where(done_B, -1, token_B)), done_B

    embeddings_BLD = model.embed(tokens_BL, image_slot_BL, features_FD)
    cache = model.init_cache(rows, width + max_new)
    hidden_BLD, cache = model.prefill(embeddings_BLD, positions_BL, valid_BT[:, :width], cache)
    alpha_B = model.ntk_alpha(length_B)
    token_B = choose(hidden_BLD[:, -1], jnp.int32(0))
    new_BM, done_B = record(jnp.full((rows, max_new), -1, jnp.int32), unused_B, token_B, jnp.int32(0))

    def unfinished(state: _Progress) -> jax.Array:
        return (state.chosen < max_new) & ~jnp.all(state.done_B)

    def step(state: _Progress) -> _Progress:
        count = state.chosen
        hidden_BD, cache = model.decode_step(
            state.token_B, length_B + count - 1, valid_BT, width + count - 1, state.cache, alpha_B
        )
        token_B = choose(hidden_BD, count)
        new_BM, done_B = record(state.new_BM, state.done_B, token_B, count)
        return _Progress(count + 1, token_B, new_BM, done_B, cache)

    start = _Progress(jnp.int32(1), token_B, new_BM, done_B, cache)
    return jax.lax.while_loop(unfinished, step, start).new_BM
