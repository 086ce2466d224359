"""The position-aware vision-language adapter: one cross-attention from learned queries to the patches (paper 2.1).

Shape suffixes: I images, P patches, Q queries, W width of the ViT, D width of the decoder, N heads, K head size.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwenvl_jax.config import ComputeConfig, ResamplerConfig
from qwenvl_jax.models.attention import attention
from qwenvl_jax.models.layers import LayerNorm, Projection, resize_positions, sincos_positions
from qwenvl_jax.models.parallel import over_rows


class CrossAttention(nn.Module):
    """Multi-head attention with biases on all four projections, as `torch.nn.MultiheadAttention`."""

    width: int
    heads: int
    compute: ComputeConfig

    @nn.compact
    def __call__(self, query_QD: jax.Array, key_IPD: jax.Array, value_IPD: jax.Array) -> jax.Array:
        """[I, Q, D] in the compute dtype; all images share the queries."""
        dtype = self.compute.compute_dtype
        width, heads = (self.width,), (self.heads, self.width // self.heads)
        # Xavier-uniform of the packed [3 * width, width] matrix that torch initialises as one.
        bound = (6 / (4 * self.width)) ** 0.5

        def xavier(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        # All images share the same queries, so they are projected once.
        q_QNK = Projection(width, heads, dtype, xavier, name="query")(query_QD)
        q_IQNK = jnp.broadcast_to(q_QNK, (key_IPD.shape[0], *q_QNK.shape))
        k_IPNK = Projection(width, heads, dtype, xavier, name="key")(key_IPD)
        v_IPNK = Projection(width, heads, dtype, xavier, name="value")(value_IPD)
        out_IQNK = attention(q_IQNK, k_IPNK, v_IPNK, implementation=self.compute.attention)
        return Projection(heads, width, dtype, nn.initializers.normal(0.02), name="out")(out_IQNK)


class Resampler(nn.Module):
    """Compresses the patches of an image to `config.queries` features.

    Positions are added after the norms, to queries and keys only. The sin-cos table is a parameter because it is
    stored in checkpoints (in bfloat16), but no stage trains it. Fresh weights follow the release: normal 0.02 (its
    truncation at +-2 lies 100 standard deviations out), Xavier for the attention's inputs.

    Attributes:
      config: queries and heads.
      input_width: W.
      width: D.
      compute: dtype and attention; the attention is not `auto`.
    """

    config: ResamplerConfig
    input_width: int
    width: int
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x_IPW: jax.Array) -> jax.Array:
        """[I, P, W] to [I, Q, D] in the compute dtype (released visual.py `Resampler`)."""
        config, dtype = self.config, self.compute.compute_dtype
        shape = (config.queries, self.width)
        query_QD = self.param("query", nn.initializers.normal(0.02), shape, jnp.float32).astype(dtype)
        positions_QD = self.param("position_embedding", self._positions, shape, jnp.float32)
        init = nn.initializers.normal(0.02)
        kv_proj = Projection((self.input_width,), (self.width,), dtype, init, use_bias=False, name="kv_proj")
        y_IPD = LayerNorm(config.layer_norm_eps, name="ln_kv")(kv_proj(over_rows(x_IPW)))
        query_QD = LayerNorm(config.layer_norm_eps, name="ln_q")(query_QD) + positions_QD.astype(dtype)
        key_IPD = y_IPD + resize_positions(positions_QD, y_IPD.shape[1]).astype(dtype)
        return CrossAttention(self.width, config.heads, self.compute, name="attn")(query_QD, key_IPD, y_IPD)

    def _positions(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        del key
        return jnp.asarray(sincos_positions(self.config.query_grid, shape[1]), dtype)
