"""The decoder against `transformers`' Qwen2 (kv heads = heads) and, beyond it, a float64 decoder written here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from qwenvl_jax.config import ComputeConfig, DecoderConfig, ModelConfig
from qwenvl_jax.models import decoder, qwen_vl
from qwenvl_jax.params import Params

RNG = np.random.default_rng(0)


def qwen2(config: DecoderConfig, tree: Params, rope_base: float | None = None) -> Qwen2ForCausalLM:
    theirs = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=rope_base or config.rope_base,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    width = config.width
    state = {
        "model.embed_tokens.weight": tree["embedding"],
        "model.norm.weight": tree["ln_f"]["scale"],
        "lm_head.weight": tree["lm_head"].T,
    }
    for i in range(config.layers):
        block = jax.tree.map(lambda x, i=i: np.asarray(x[i]), tree["blocks"])
        attn, mlp, name = block["attn"], block["mlp"], f"model.layers.{i}"
        for j, part in enumerate("qkv"):
            state[f"{name}.self_attn.{part}_proj.weight"] = attn["qkv"]["kernel"][:, j].reshape(width, width).T
            state[f"{name}.self_attn.{part}_proj.bias"] = attn["qkv"]["bias"][j].reshape(-1)
        state[f"{name}.self_attn.o_proj.weight"] = attn["out"]["kernel"].reshape(width, width).T
        for part in ("up", "gate", "down"):
            state[f"{name}.mlp.{part}_proj.weight"] = mlp[part]["kernel"].T
        state[f"{name}.input_layernorm.weight"] = block["ln_1"]["scale"]
        state[f"{name}.post_attention_layernorm.weight"] = block["ln_2"]["scale"]
    theirs.load_state_dict({k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()})
    return theirs


def qwen2_logits(theirs: Qwen2ForCausalLM, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens).long()).logits.numpy()


def numpy_logits(config: DecoderConfig, tree: Params, tokens_L: np.ndarray) -> np.ndarray:
    """One sample in evaluation mode, float64: released formulas for dynamic NTK and log-n attention."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    length, size, base = len(tokens_L), config.head_dim, config.rope_base
    alpha = max(2 ** math.ceil(math.log2(length / config.train_length) + 1) - 1, 1)
    base = base * alpha ** (size / (size - 2))
    angles = np.arange(length)[:, None] / base ** (np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    number = np.arange(1, length + 1)
    logn = np.where(number > config.train_length, np.log(number) / np.log(config.train_length), 1.0)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = tree["embedding"][tokens_L]
    for i in range(config.layers):
        block = jax.tree.map(lambda p, i=i: p[i], tree["blocks"])
        qkv = np.einsum("ld,dcnk->clnk", norm(x, block["ln_1"]["scale"]), block["attn"]["qkv"]["kernel"])
        q, k, v = qkv + block["attn"]["qkv"]["bias"][:, None]
        q, k = rotate(q) * logn[:, None, None], rotate(k)
        scores = np.einsum("lnk,tnk->nlt", q, k) / math.sqrt(size) + np.triu(np.full((length, length), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("nlt,tnk->lnk", weights, v)
        x = x + np.einsum("lnk,nkd->ld", out, block["attn"]["out"]["kernel"])
        y, mlp = norm(x, block["ln_2"]["scale"]), block["mlp"]
        gate = y @ mlp["gate"]["kernel"]
        x = x + (y @ mlp["up"]["kernel"] * gate / (1 + np.exp(-gate))) @ mlp["down"]["kernel"]
    return norm(x, tree["ln_f"]["scale"]) @ tree["lm_head"]


def our_logits(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    tokens: Any,
    segments: Any = None,
    positions: Any = None,
    training: bool = True,
) -> np.ndarray:
    tokens = jnp.asarray(tokens, jnp.int32)
    if segments is None:
        segments = jnp.ones_like(tokens)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)

    @jax.jit
    def run(tree: Params) -> jax.Array:
        hidden = qwen_vl.forward(
            {"decoder": tree},
            model,
            compute,
            tokens_BL=tokens,
            segment_ids_BL=jnp.asarray(segments, jnp.int32),
            positions_BL=jnp.asarray(positions, jnp.int32),
            image_slot_BL=jnp.full(tokens.shape, -1, jnp.int32),
            images_IHWC=None,
            training=training,
        )
        return qwen_vl.logits({"decoder": tree}, model, compute, hidden)

    return np.asarray(run(params["decoder"]))


def test_decoder_equals_qwen2(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    tokens = RNG.integers(0, model.decoder.vocab_size, (2, 12))
    theirs = qwen2_logits(qwen2(model.decoder, params["decoder"]), tokens)
    np.testing.assert_allclose(our_logits(params, model, compute, tokens), theirs, atol=1e-5, rtol=1e-5)


def test_packed_samples_equal_separate_runs(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    """Three samples and padding in one row; one sample and padding in the other."""
    lengths = [[5, 1, 7], [9]]
    samples = [[RNG.integers(0, model.decoder.vocab_size, n) for n in row] for row in lengths]
    tokens, segments, positions = np.zeros((3, 2, 16), np.int32)
    spans = []
    for b, row in enumerate(samples):
        start = 0
        for i, sample in enumerate(row):
            end = start + len(sample)
            tokens[b, start:end], segments[b, start:end], positions[b, start:end] = sample, i + 1, range(len(sample))
            spans.append((b, start, end, sample))
            start = end
    ours = our_logits(params, model, compute, tokens, segments, positions)
    assert np.isfinite(ours).all()
    theirs = qwen2(model.decoder, params["decoder"])
    for b, start, end, sample in spans:
        np.testing.assert_allclose(ours[b, start:end], qwen2_logits(theirs, sample[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [16, 17, 32, 41])
def test_evaluation_beyond_the_train_length(
    model: ModelConfig, compute: ComputeConfig, params: Params, length: int
) -> None:
    """Train length 16: alpha 1, 3, 3 and 7; log-n from the 17th token on."""
    tokens = RNG.integers(0, model.decoder.vocab_size, (1, length))
    expected = numpy_logits(model.decoder, params["decoder"], tokens[0])
    ours = our_logits(params, model, compute, tokens, training=False)
    np.testing.assert_allclose(ours[0], expected, atol=1e-5, rtol=1e-5)


def test_training_uses_neither_logn_nor_ntk(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    tokens = RNG.integers(0, model.decoder.vocab_size, (1, 24))
    theirs = qwen2_logits(qwen2(model.decoder, params["decoder"]), tokens)
    np.testing.assert_allclose(our_logits(params, model, compute, tokens), theirs, atol=1e-5, rtol=1e-5)
    assert np.abs(our_logits(params, model, compute, tokens, training=False) - theirs).max() > 1e-2


def test_packed_evaluation_takes_each_samples_own_length(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    long, short = RNG.integers(0, model.decoder.vocab_size, 20), RNG.integers(0, model.decoder.vocab_size, 6)
    segments, positions = [[1] * 20 + [2] * 6], [[*range(20), *range(6)]]
    ours = our_logits(params, model, compute, [[*long, *short]], segments, positions, training=False)[0]
    np.testing.assert_allclose(ours[:20], numpy_logits(model.decoder, params["decoder"], long), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours[20:], numpy_logits(model.decoder, params["decoder"], short), atol=1e-5, rtol=1e-5)


def test_ntk_alpha_alone_is_qwen2_with_a_larger_base(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    config = dataclasses.replace(model.decoder, logn_attention=False)
    tokens = RNG.integers(0, config.vocab_size, (1, 20))
    base = 10000 * 3 ** (config.head_dim / (config.head_dim - 2))
    ours = our_logits(params, dataclasses.replace(model, decoder=config), compute, tokens, training=False)
    theirs = qwen2_logits(qwen2(config, params["decoder"], base), tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_ntk_alpha_at_the_released_train_length(model: ModelConfig) -> None:
    config = dataclasses.replace(model.decoder, train_length=2048)
    lengths = [1, 1024, 2047, 2048, 2049, 4096, 4097, 8192, 8193]
    np.testing.assert_array_equal(decoder.ntk_alpha(config, jnp.array(lengths)), [1, 1, 1, 1, 3, 3, 7, 7, 15])
    assert decoder.ntk_alpha(dataclasses.replace(config, dynamic_ntk=False), 5000) == 1


def test_an_id_outside_the_vocabulary_is_loud(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    tokens = np.array([[1, model.decoder.vocab_size, 2]])
    assert np.isnan(our_logits(params, model, compute, tokens)[0, 1]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_halves_are_swapped_by_a_product_without_rounding(dtype: Any) -> None:
    x = jnp.asarray(RNG.normal(size=(2, 5, 3, 16)), dtype)
    angles = jnp.asarray(RNG.uniform(0, 100, (2, 5, 8)), jnp.float32)
    plain = decoder.rotate(x, jnp.cos(angles), jnp.sin(angles))
    np.testing.assert_array_equal(decoder.rotate(x, jnp.cos(angles), jnp.sin(angles), by_product=True), plain)
