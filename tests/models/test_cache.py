"""Prefill and decode steps against the full forward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import Params

RNG = np.random.default_rng(0)
LENGTH = 28  # of the cache


@functools.cache
def compiled(model: ModelConfig, compute: ComputeConfig) -> tuple[Callable[..., Any], ...]:
    """Jitted prefill, step and full evaluation pass; one compilation per shape serves all tests."""

    def full(tree: Params, tokens: jax.Array) -> jax.Array:
        return qwen_vl.forward(
            tree,
            model,
            compute,
            tokens_BL=tokens,
            segment_ids_BL=jnp.ones_like(tokens),
            positions_BL=jnp.arange(tokens.shape[1], dtype=jnp.int32)[None],
            image_slot_BL=jnp.full_like(tokens, -1),
            images_IHWC=None,
            training=False,
        )

    return (
        jax.jit(lambda tree, *rest: qwen_vl.prefill(tree, model, compute, *rest)),
        jax.jit(lambda tree, *rest: qwen_vl.decode_step(tree, model, compute, *rest)),
        jax.jit(full),
    )


def full_hidden(params: Params, model: ModelConfig, compute: ComputeConfig, tokens: np.ndarray) -> jax.Array:
    """Hidden states of one sample without padding or cache."""
    return compiled(model, compute)[2](params, jnp.asarray(tokens, jnp.int32)[None])[0]


def generate(
    params: Params, model: ModelConfig, compute: ComputeConfig, prompts: list[np.ndarray], answers: np.ndarray
) -> np.ndarray:
    """Left-padded prefill, then one step per token of the answers; returns hidden [B, 1 + answer, D]."""
    prefill, step, _ = compiled(model, compute)
    batch, width = len(prompts), max(map(len, prompts))
    tokens, valid = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    for b, prompt in enumerate(prompts):
        tokens[b, width - len(prompt) :], valid[b, width - len(prompt) :] = prompt, True
    lengths = jnp.asarray(valid.sum(1), jnp.int32)
    x = qwen_vl.embed(params, model, compute, jnp.asarray(tokens), jnp.full(tokens.shape, -1, jnp.int32), None)
    cache = qwen_vl.init_cache(model, compute, batch, LENGTH)
    hidden, cache = prefill(params, x, jnp.asarray(np.cumsum(valid, 1) - 1), jnp.asarray(valid), cache)
    steps, alpha = [hidden[:, -1]], qwen_vl.ntk_alpha(model, lengths)
    seen = jnp.asarray(np.pad(valid, ((0, 0), (0, LENGTH - width)), constant_values=True))
    for i in range(answers.shape[1]):
        hidden, cache = step(params, jnp.asarray(answers[:, i]), lengths + i, seen, jnp.int32(width + i), cache, alpha)
        steps.append(hidden)
    return np.stack(steps, 1)


@pytest.mark.parametrize("lengths", [(9, 9), (9, 2)])
def test_cached_decoding_equals_the_full_pass(
    model: ModelConfig, compute: ComputeConfig, params: Params, lengths: tuple[int, int]
) -> None:
    prompts = [RNG.integers(0, model.decoder.vocab_size, n) for n in lengths]
    answers = RNG.integers(0, model.decoder.vocab_size, (2, 4)).astype(np.int32)
    ours = generate(params, model, compute, prompts, answers)
    assert np.isfinite(ours).all()
    for b, prompt in enumerate(prompts):
        expected = full_hidden(params, model, compute, np.concatenate([prompt, answers[b]]))
        np.testing.assert_allclose(ours[b], expected[len(prompt) - 1 :], atol=1e-5, rtol=1e-5)


def test_long_prompts_keep_their_ntk_alpha_and_short_neighbours_theirs(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    """Train length 16: rows of 20 (alpha 3) and 5 (alpha 1) in one batch."""
    prompts = [RNG.integers(0, model.decoder.vocab_size, n) for n in (20, 5)]
    answers = RNG.integers(0, model.decoder.vocab_size, (2, 4)).astype(np.int32)
    ours = generate(params, model, compute, prompts, answers)
    for b, prompt in enumerate(prompts):
        expected = full_hidden(params, model, compute, np.concatenate([prompt, answers[b]]))
        np.testing.assert_allclose(ours[b], expected[len(prompt) - 1 :], atol=1e-5, rtol=1e-5)


def test_a_sample_that_grows_beyond_the_train_length_keeps_alpha_one(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    """14 tokens of prompt and 4 of answer: log-n sets in at the 17th, NTK does not (as released)."""
    prompt = RNG.integers(0, model.decoder.vocab_size, 14)
    answers = RNG.integers(0, model.decoder.vocab_size, (1, 4)).astype(np.int32)
    ours = generate(params, model, compute, [prompt], answers)[0]
    without_ntk = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, dynamic_ntk=False))
    expected = full_hidden(params, without_ntk, compute, np.concatenate([prompt, answers[0]]))
    np.testing.assert_allclose(ours, expected[13:], atol=1e-5, rtol=1e-5)
    with_ntk = full_hidden(params, model, compute, np.concatenate([prompt, answers[0]]))
    assert np.abs(ours - with_ntk[13:]).max() > 1e-3


def test_cache_holds_keys_after_rotary_in_the_compute_dtype(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    (cache,) = qwen_vl.init_cache(model, compute, 2, LENGTH).parts
    config = model.decoder
    assert cache.key.shape == cache.value.shape == (config.layers, 2, config.heads, LENGTH, config.head_dim)
    assert len(jax.tree.leaves(cache)) == 2
    tokens = jnp.full((1, 2), 7, jnp.int32)
    x = qwen_vl.embed(params, model, compute, tokens, -jnp.ones_like(tokens), None)
    empty = qwen_vl.init_cache(model, compute, 1, 4)
    _, filled = qwen_vl.prefill(params, model, compute, x, jnp.arange(2)[None], jnp.ones((1, 2), bool), empty)
    (cache,) = filled.parts
    # The same token twice: equal values in the first layer, but keys turned by their positions.
    np.testing.assert_allclose(cache.value[0, 0, :, 0], cache.value[0, 0, :, 1], atol=1e-6)
    assert np.abs(cache.key[0, 0, :, 0] - cache.key[0, 0, :, 1]).max() > 1e-3
    np.testing.assert_array_equal(cache.key[:, :, :, 2:], 0)
