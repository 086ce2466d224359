"""The decoder with its layers in a stack and apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from configs import model as models
from qwenvl_jax import config as config_lib
from qwenvl_jax.models import qwen_vl

MODEL = config_lib.from_config_dict(config_lib.ModelConfig, dict(models.tiny().items()))
COMPUTE = config_lib.ComputeConfig("float32", "float32", "xla", "none", "none", False, 64)


def run(params: qwen_vl.Params, *, cache_apart: bool = False) -> list[jax.Array]:
    """Hidden states of a prefill and of two decoded tokens, and the contents of the cache."""
    tokens_BL = jnp.asarray(np.random.default_rng(0).integers(0, 512, (3, 7)), jnp.int32)
    x_BLD = qwen_vl.embed(params, MODEL, COMPUTE, tokens_BL, jnp.full((3, 7), -1), None)
    cache = qwen_vl.init_cache(MODEL, COMPUTE, 3, 12, apart=cache_apart)
    positions_BL = jnp.broadcast_to(jnp.arange(7), (3, 7))
    hidden, cache = qwen_vl.prefill(params, MODEL, COMPUTE, x_BLD, positions_BL, positions_BL < 6, cache)
    kept = [hidden]
    for column in (7, 8):
        index_B = jnp.full(3, column)
        hidden, cache = qwen_vl.decode_step(
            params, MODEL, COMPUTE, tokens_BL[:, 0], index_B, jnp.ones((3, 12), bool), index_B, cache, 1.0
        )
        kept += [hidden, qwen_vl.logits(params, MODEL, COMPUTE, hidden)]
    layers = [cache.of_layer(number) for number in range(MODEL.decoder.layers)]
    return [*kept, jnp.stack([layer.key for layer in layers]), jnp.stack([layer.value for layer in layers])]


def test_layers_apart_compute_the_same() -> None:
    params = qwen_vl.init_params(MODEL, jax.random.key(0))
    apart = qwen_vl.layers_apart(params)
    assert len(apart["decoder"]["blocks"]) == MODEL.decoder.layers
    for one, two, three in zip(run(params), run(apart), run(apart, cache_apart=True), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
        np.testing.assert_allclose(one, three, atol=1e-5)
    image = jnp.zeros((1, 28, 28, 3), jnp.uint8)
    stacked, alone = (qwen_vl.encode_images(tree, MODEL, COMPUTE, image) for tree in (params, apart))
    np.testing.assert_array_equal(stacked, alone)


def test_rows_after_a_prefix_are_those_of_whole_rows() -> None:
    """Four tokens that all rows begin with, in a cache with two more columns; the last row has two tokens less."""
    params = qwen_vl.init_params(MODEL, jax.random.key(0))
    tokens_BL = jnp.asarray(np.random.default_rng(0).integers(0, 512, (3, 9)), jnp.int32)
    tokens_BL = tokens_BL.at[:, :4].set(tokens_BL[0, :4])
    valid_BL = jnp.arange(9) < jnp.array([[9], [9], [7]])
    x_BLD = qwen_vl.embed(params, MODEL, COMPUTE, tokens_BL, jnp.full((3, 9), -1), None)
    positions_BL = jnp.broadcast_to(jnp.arange(9), (3, 9))
    empty = qwen_vl.init_cache(MODEL, COMPUTE, 3, 9)
    whole_BLD, _ = qwen_vl.prefill(params, MODEL, COMPUTE, x_BLD, positions_BL, valid_BL, empty)
    apart = qwen_vl.layers_apart(params)
    for tree, cache_apart in ((params, False), (apart, False), (apart, True)):
        cache = qwen_vl.init_cache(MODEL, COMPUTE, 1, 6, apart=cache_apart)
        beginning = x_BLD[:1, :4]
        _, cache = qwen_vl.prefill(tree, MODEL, COMPUTE, beginning, positions_BL[:1, :4], valid_BL[:1, :4], cache)
        rest_BLD = qwen_vl.after_prefix(tree, MODEL, COMPUTE, x_BLD[:, 4:], valid_BL[:, 4:], cache, 4)
        np.testing.assert_allclose(rest_BLD[valid_BL[:, 4:]], whole_BLD[:, 4:][valid_BL[:, 4:]], atol=1e-5)
