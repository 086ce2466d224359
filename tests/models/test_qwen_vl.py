"""The assembled model: counts, parameter paths, features in their slots, padding, precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.model import qwen_vl_9b6
from qwenvl_jax.config import ComputeConfig, DecoderConfig, ModelConfig, ResamplerConfig, VitConfig, from_config_dict
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import Params, component_of

RNG = np.random.default_rng(0)


def full_model() -> ModelConfig:
    """The released sizes."""
    return ModelConfig(
        name="qwen_vl_9b6",
        vit=VitConfig(1664, 48, 16, 8192, 14, 16, 1e-6),
        resampler=ResamplerConfig(16, 32, 1e-6),
        decoder=DecoderConfig(151936, 4096, 32, 32, 11008, 10000.0, 1e-6, 2048, True, True),
    )


def paths(tree: Params) -> dict[tuple[str, ...], Any]:
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_parameter_counts_of_the_full_model() -> None:
    leaves = paths(qwen_vl.abstract_params(full_model()))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == jnp.float32 for leaf in leaves.values())
    counts: dict[str, int] = {}
    for path, leaf in leaves.items():
        component = component_of(path)
        counts[component] = counts.get(component, 0) + int(np.prod(leaf.shape))
    assert counts == {
        "vit": 1_842_770_688,
        "vit_head": 16_785_408,
        "resampler": 75_005_952,
        "fixed": 1_048_576,
        "decoder": 7_721_324_544,
    }
    assert sum(counts.values()) == 9_656_935_168
    block = sum(int(np.prod(leaf.shape[1:])) for path, leaf in leaves.items() if path[:2] == ("vit", "blocks"))
    assert block == 38_361_728
    block = sum(int(np.prod(leaf.shape[1:])) for path, leaf in leaves.items() if path[:2] == ("decoder", "blocks"))
    assert block == 202_395_648


def test_the_full_config_is_the_released_model() -> None:
    assert from_config_dict(ModelConfig, qwen_vl_9b6()) == full_model()


def test_parameter_paths_and_shapes(model: ModelConfig) -> None:
    vit, d, r = model.vit, model.decoder, model.resampler
    w, n, k, f, s = vit.width, vit.heads, vit.width // vit.heads, vit.mlp_dim, vit.layers
    ds, dw, dn, dk, df = d.layers, d.width, d.heads, d.head_dim, d.mlp_dim
    rk = dw // r.heads
    expected = {
        "vit/patch_embed/kernel": (4, 4, 3, w),
        "vit/position_embedding": (16, w),
        "vit/ln_pre/scale": (w,),
        "vit/ln_pre/bias": (w,),
        "vit/blocks/ln_1/scale": (s, w),
        "vit/blocks/ln_1/bias": (s, w),
        "vit/blocks/ln_2/scale": (s, w),
        "vit/blocks/ln_2/bias": (s, w),
        "vit/blocks/attn/qkv/kernel": (s, w, 3, n, k),
        "vit/blocks/attn/qkv/bias": (s, 3, n, k),
        "vit/blocks/attn/out/kernel": (s, n, k, w),
        "vit/blocks/attn/out/bias": (s, w),
        "vit/blocks/mlp/up/kernel": (s, w, f),
        "vit/blocks/mlp/up/bias": (s, f),
        "vit/blocks/mlp/down/kernel": (s, f, w),
        "vit/blocks/mlp/down/bias": (s, w),
        "vit/ln_post/scale": (dw,),
        "vit/ln_post/bias": (dw,),
        "vit/proj": (dw, dw),
        "resampler/query": (9, dw),
        "resampler/position_embedding": (9, dw),
        "resampler/kv_proj/kernel": (w, dw),
        "resampler/ln_q/scale": (dw,),
        "resampler/ln_q/bias": (dw,),
        "resampler/ln_kv/scale": (dw,),
        "resampler/ln_kv/bias": (dw,),
        **{f"resampler/attn/{name}/kernel": (dw, r.heads, rk) for name in ("query", "key", "value")},
        **{f"resampler/attn/{name}/bias": (r.heads, rk) for name in ("query", "key", "value")},
        "resampler/attn/out/kernel": (r.heads, rk, dw),
        "resampler/attn/out/bias": (dw,),
        "decoder/embedding": (d.vocab_size, dw),
        "decoder/blocks/ln_1/scale": (ds, dw),
        "decoder/blocks/ln_2/scale": (ds, dw),
        "decoder/blocks/attn/qkv/kernel": (ds, dw, 3, dn, dk),
        "decoder/blocks/attn/qkv/bias": (ds, 3, dn, dk),
        "decoder/blocks/attn/out/kernel": (ds, dn, dk, dw),
        "decoder/blocks/mlp/up/kernel": (ds, dw, df),
        "decoder/blocks/mlp/gate/kernel": (ds, dw, df),
        "decoder/blocks/mlp/down/kernel": (ds, df, dw),
        "decoder/ln_f/scale": (dw,),
        "decoder/lm_head": (dw, d.vocab_size),
    }
    assert {"/".join(p): leaf.shape for p, leaf in paths(qwen_vl.abstract_params(model)).items()} == expected


def test_initial_values(model: ModelConfig, fresh_params: Params) -> None:
    leaves = {"/".join(path): np.asarray(leaf) for path, leaf in paths(fresh_params).items()}
    for name, std in {
        "decoder/embedding": 0.02,
        "decoder/lm_head": 0.02,
        "decoder/blocks/attn/qkv/kernel": 0.02,
        "decoder/blocks/attn/out/kernel": 0.02 / 2,  # two layers: / sqrt(4)
        "decoder/blocks/mlp/down/kernel": 0.02 / 2,
        "resampler/query": 0.02,
        "resampler/attn/out/kernel": 0.02,
        "resampler/attn/key/kernel": (2 / (4 * 32)) ** 0.5,
        "vit/proj": 32**-0.5,
        "vit/position_embedding": 24**-0.5,
        "vit/patch_embed/kernel": 48**-0.5,
    }.items():
        assert leaves[name].std() == pytest.approx(std, rel=0.12), name
    for name, leaf in leaves.items():
        if name.endswith("bias"):
            assert (leaf == 0).all(), name
        if name.endswith("scale"):
            assert (leaf == 1).all(), name
    wider = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, initializer_range=0.2))
    for path, leaf in paths(qwen_vl.init_params(wider, jax.random.key(0))["decoder"]).items():
        if path[-1] in ("kernel", "embedding", "lm_head"):
            np.testing.assert_allclose(leaf, 10 * leaves["/".join(("decoder", *path))], rtol=1e-6)
    blocks = leaves["decoder/blocks/attn/qkv/kernel"]
    assert not np.array_equal(blocks[0], blocks[1])
    again, other = (qwen_vl.init_params(model, jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, fresh_params, again)
    assert not np.array_equal(other["vit"]["proj"], again["vit"]["proj"])


@pytest.fixture(scope="module")
def encode(model: ModelConfig, compute: ComputeConfig) -> Callable[..., jax.Array]:
    return jax.jit(lambda p, x: qwen_vl.encode_images(p, model, compute, x))


def test_features_do_not_depend_on_other_images(
    model: ModelConfig, params: Params, encode: Callable[..., jax.Array]
) -> None:
    images = RNG.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    together = np.asarray(encode(params, images)).reshape(3, model.resampler.queries, -1)
    for i in range(3):
        np.testing.assert_allclose(together[i], encode(params, images[i : i + 1]), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_features_replace_exactly_their_slots(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    queries = model.resampler.queries
    tokens = jnp.asarray(RNG.integers(0, model.decoder.vocab_size, (2, 24)), jnp.int32)
    features = jnp.asarray(RNG.normal(size=(2 * queries, model.decoder.width)), jnp.float32)
    slots = np.full((2, 24), -1, np.int32)
    slots[1, 3 : 3 + queries] = range(queries)  # the first image lies in the second row
    slots[0, 10 : 10 + queries] = range(queries, 2 * queries)
    text = qwen_vl.embed(params, model, compute, tokens, jnp.asarray(slots), None)
    np.testing.assert_array_equal(text, np.asarray(params["decoder"]["embedding"])[np.asarray(tokens)])
    mixed = np.asarray(qwen_vl.embed(params, model, compute, tokens, jnp.asarray(slots), features))
    np.testing.assert_array_equal(mixed[1, 3 : 3 + queries], features[:queries])
    np.testing.assert_array_equal(mixed[0, 10 : 10 + queries], features[queries:])
    np.testing.assert_array_equal(mixed[slots < 0], np.asarray(text)[slots < 0])


def microbatch(model: ModelConfig) -> dict[str, Any]:
    """Two rows: one sample with one of the two images, then padding; and a row of nothing but padding."""
    queries = model.resampler.queries
    tokens = RNG.integers(1, model.decoder.vocab_size, (2, 20)).astype(np.int32)
    segments = np.zeros((2, 20), np.int32)
    segments[0, :15] = 1
    slots = np.full((2, 20), -1, np.int32)
    slots[0, 2 : 2 + queries] = range(queries)
    positions = np.where(segments > 0, np.arange(20), 0).astype(np.int32)
    return {
        "tokens_BL": jnp.asarray(np.where(segments > 0, tokens, 0)),
        "segment_ids_BL": jnp.asarray(segments),
        "positions_BL": jnp.asarray(positions),
        "image_slot_BL": jnp.asarray(slots),
        "images_IHWC": jnp.asarray(RNG.integers(0, 256, (2, 16, 16, 3)), jnp.uint8).at[1].set(0),
    }


def test_gradients_with_padding_are_finite_and_reach_every_parameter(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    batch = microbatch(model)

    def loss(tree: Params, images: jax.Array) -> jax.Array:
        hidden = qwen_vl.forward(tree, model, compute, **(batch | {"images_IHWC": images}))
        logits = qwen_vl.logits(tree, model, compute, hidden)
        mask = (batch["segment_ids_BL"] > 0) & (batch["image_slot_BL"] < 0)
        return -jnp.sum(jax.nn.log_softmax(logits)[..., 5] * mask)

    run = jax.jit(jax.value_and_grad(loss))
    value, grads = run(params, batch["images_IHWC"])
    for path, leaf in paths(grads).items():
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    # The image that no row refers to neither changes the loss nor the gradients.
    other, other_grads = run(params, batch["images_IHWC"].at[1].set(200))
    assert value == other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, other_grads)


def test_bfloat16_compute_stays_close_and_stored_bfloat16_is_accepted(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    batch = microbatch(model)
    half = dataclasses.replace(compute, compute_dtype="bfloat16")
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hidden = jax.jit(lambda p: qwen_vl.forward(p, model, half, **batch))(frozen)
    logits = qwen_vl.logits(frozen, model, half, hidden)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    exact = jax.jit(lambda p: qwen_vl.forward(p, model, compute, **batch))(params)
    valid = np.asarray(batch["segment_ids_BL"]) > 0
    error = np.asarray(hidden, np.float32)[valid] - np.asarray(exact)[valid]
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.asarray(exact)[valid].std()


def test_the_whole_gradient_lowers_for_tpu_with_splash(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    settings = dataclasses.replace(
        compute, compute_dtype="bfloat16", attention="splash", remat_vit="attention_saved", remat_decoder="full"
    )
    batch = microbatch(model)

    def loss(tree: Params) -> jax.Array:
        return jnp.sum(qwen_vl.forward(tree, model, settings, **batch).astype(jnp.float32))

    text = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("tpu",)).as_text()
    # Three towers forward and backward, and once more in the decoder, whose policy keeps nothing.
    assert text.count("tpu_custom_call") == 7
