"""Greedy decoding with a key-value cache, batched and compiled: one prefill and one loop, both on the device.

Prompts are padded on the left, so that all of a batch end in the same column. Lengths are rounded up to a multiple
of `LENGTH_STEP` and batches have one number of rows, so that a whole benchmark needs a handful of compilations.

Shape suffixes: B rows, L prompt tokens, M new tokens, T = L + M cached tokens, I images, F features (I * Q), D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime.errors import UserError

LENGTH_STEP = 32


def generate(
    params: qwen_vl.Params,
    model: ModelConfig,
    compute: ComputeConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new: int,
    min_new: int = 0,
    stop_ids: Sequence[int] | None = None,
    batch_size: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The most likely continuation of every prompt, token by token.

    Args:
      params: the tree of `qwen_vl.init_params`.
      model, compute: architecture and precision.
      tokenizer: whose `<|endoftext|>` ends an answer where `stop_ids` does not say otherwise.
      prompts: in any order and of any lengths.
      max_new: new tokens at most.
      min_new: new tokens before which no stop id may be chosen (the released scripts' min_new_tokens).
      stop_ids: ids that end an answer; they are not returned.
      batch_size: prompts decoded together.
      progress: called with the number of prompts that just finished.

    Returns:
      The new ids of each prompt, in the order of `prompts`.

    Raises:
      UserError: for an empty prompt, or limits that contradict one another.
    """
    if max_new < 1 or not 0 <= min_new <= max_new:
        raise UserError(f"max_new {max_new} must be at least 1 and min_new {min_new} between 0 and max_new")
    if any(len(prompt.tokens_L) == 0 for prompt in prompts):
        raise UserError("a prompt without any token cannot be continued; give it some text or an image")
    rows = min(batch_size, len(prompts))
    answers: list[list[int]] = [[] for _ in prompts]
    sizes = [(len(prompt.tokens_L), len(prompt.images_IHWC)) for prompt in prompts]
    for group in group_by_length(sizes, rows):
        new = generate_batch(
            params, model, compute, tokenizer, [prompts[i] for i in group], rows,
            max_new=max_new, min_new=min_new, stop_ids=stop_ids,
        )  # fmt: skip
        for i, ids in zip(group, new, strict=True):
            answers[i] = ids
        if progress is not None:
            progress(len(group))
    return answers


def generate_batch(
    params: qwen_vl.Params,
    model: ModelConfig,
    compute: ComputeConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    rows: int,
    *,
    max_new: int,
    min_new: int = 0,
    stop_ids: Sequence[int] | None = None,
) -> list[list[int]]:
    """The continuations of prompts that are decoded together, at most `rows` of them; as `generate`, unchecked."""
    stops = tuple(sorted({int(i) for i in (stop_ids if stop_ids is not None else (tokenizer.special.eot,))}))
    batch = _pad(prompts, rows, model.resampler.queries)
    features_FD = None
    if len(batch.images_IHWC):
        features_FD = _encode(params, model, compute, batch.images_IHWC)
    new_BM = np.asarray(
        _continue(
            params, model, compute, batch.tokens_BL, batch.length_B, batch.image_slot_BL, features_FD,
            jnp.int32(min_new), max_new=max_new, stops=stops,
        )
    )  # fmt: skip
    return [[int(token) for token in new_BM[row] if token >= 0] for row in range(len(prompts))]


def group_by_length(sizes: Sequence[tuple[int, int]], rows: int) -> Iterator[list[int]]:
    """Indices of prompts to decode together: neighbours in length.

    Args:
      sizes: (tokens, images) of every prompt.
      rows: of a group at most.
    """
    order = sorted(range(len(sizes)), key=lambda i: (*sizes[i], i))
    for start in range(0, len(order), max(1, rows)):
        yield order[start : start + rows]


class _Padded(NamedTuple):
    tokens_BL: np.ndarray
    length_B: np.ndarray
    image_slot_BL: np.ndarray
    images_IHWC: np.ndarray


def _pad(prompts: Sequence[Prompt], rows: int, queries: int) -> _Padded:
    """Left-pads to static shapes. Rows without a prompt have length 0; the images are padded to a multiple of rows."""
    width = max(len(prompt.tokens_L) for prompt in prompts)
    width = -(-width // LENGTH_STEP) * LENGTH_STEP
    tokens_BL = np.zeros((rows, width), np.int32)
    image_slot_BL = np.full((rows, width), -1, np.int32)
    length_B = np.zeros(rows, np.int32)
    images: list[np.ndarray] = []
    for row, prompt in enumerate(prompts):
        length_B[row] = len(prompt.tokens_L)
        tokens_BL[row, width - length_B[row] :] = prompt.tokens_L
        slots = prompt.image_query_L
        image_slot_BL[row, width - length_B[row] :] = np.where(slots >= 0, slots + len(images) * queries, -1)
        images.extend(prompt.images_IHWC)
    if not images:
        return _Padded(tokens_BL, length_B, image_slot_BL, np.zeros((0, 1, 1, 3), np.uint8))
    images += [np.zeros_like(images[0])] * (-len(images) % rows)
    return _Padded(tokens_BL, length_B, image_slot_BL, np.stack(images))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _encode(params: qwen_vl.Params, model: ModelConfig, compute: ComputeConfig, images_IHWC: jax.Array) -> jax.Array:
    return qwen_vl.encode_images(params, model, compute, images_IHWC)


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames=("max_new", "stops"))
def _continue(
    params: qwen_vl.Params,
    model: ModelConfig,
    compute: ComputeConfig,
    tokens_BL: jax.Array,
    length_B: jax.Array,
    image_slot_BL: jax.Array,
    features_FD: jax.Array | None,
    min_new: jax.Array,
    *,
    max_new: int,
    stops: tuple[int, ...],
) -> jax.Array:
    """[B, M] new ids, -1 from a row's stop id on."""
    rows, width = tokens_BL.shape
    unused_B = length_B == 0  # rows that only fill up the batch must not keep the loop running
    length_B = jnp.maximum(length_B, 1)
    column_T = jnp.arange(width + max_new)
    valid_BT = column_T >= (width - length_B)[:, None]
    positions_BL = column_T[:width] - (width - length_B)[:, None]
    stop_ids = jnp.asarray(stops, jnp.int32)

    def choose(hidden_BD: jax.Array, count: jax.Array) -> jax.Array:
        logits_BV = qwen_vl.logits(params, model, compute, hidden_BD)
        banned = jnp.where(count < min_new, -jnp.inf, 0.0) if stops else 0.0
        return jnp.argmax(logits_BV.at[:, stop_ids].add(banned), axis=-1).astype(jnp.int32)

    def record(new_BM: jax.Array, done_B: jax.Array, token_B: jax.Array, count: jax.Array):
        done_B |= jnp.isin(token_B, stop_ids)
        return new_BM.at[:, count].set(jnp.where(done_B, -1, token_B)), done_B

    embeddings_BLD = qwen_vl.embed(params, model, compute, tokens_BL, image_slot_BL, features_FD)
    cache = qwen_vl.init_cache(model, compute, rows, width + max_new)
    hidden_BLD, cache = qwen_vl.prefill(
        params, model, compute, embeddings_BLD, positions_BL, valid_BT[:, :width], cache
    )
    alpha_B = qwen_vl.ntk_alpha(model, length_B)
    token_B = choose(hidden_BLD[:, -1], jnp.int32(0))
    new_BM, done_B = record(jnp.full((rows, max_new), -1, jnp.int32), unused_B, token_B, jnp.int32(0))

    def unfinished(state):
        count, _, _, done_B, _ = state
        return (count < max_new) & ~jnp.all(done_B)

    def step(state):
        count, token_B, new_BM, done_B, cache = state
        hidden_BD, cache = qwen_vl.decode_step(
            params, model, compute, token_B, length_B + count - 1, valid_BT, width + count - 1, cache, alpha_B
        )
        token_B = choose(hidden_BD, count)
        new_BM, done_B = record(new_BM, done_B, token_B, count)
        return count + 1, token_B, new_BM, done_B, cache

    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), token_B, new_BM, done_B, cache))[2]
