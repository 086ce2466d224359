"""The Qwen decoder: RMSNorm, rotary, biased qkv, SwiGLU; log-n attention and dynamic NTK at evaluation only.

Shape suffixes: B rows, L tokens, T cached tokens, D width, N heads, K head size, R half a head (rotary pairs),
F hidden width, V vocabulary, S stacked layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.config import ComputeConfig, DecoderConfig
from qwenvl_jax.models.attention import attention, attention_after_prefix, decode_attention
from qwenvl_jax.models.cache import KeyValue, written
from qwenvl_jax.models.layers import Projection, RMSNorm, named, scan_blocks
from qwenvl_jax.models.parallel import lookup, over_rows


class Rotary(NamedTuple):
    """How positions change queries and keys; the same in all layers.

    Attributes:
      cos_BLR, sin_BLR: float32, cosine and sine of the rotary angles.
      logn_BL: float32 log-n factor of the query, or None in training.
    """

    cos_BLR: jax.Array
    sin_BLR: jax.Array
    logn_BL: jax.Array | None


def ntk_alpha(config: DecoderConfig, length: jax.Array | int) -> jax.Array:
    """Factor of dynamic NTK for prompts of `length` tokens, float32 of the same shape.

    max(2^ceil(log2(length / train_length) + 1) - 1, 1), so 1 up to `train_length`, 3 up to twice that, 7 up to four
    times (released modeling_qwen.py). A decode step keeps the alpha of its prefill, although the text grows.
    """
    length = jnp.asarray(length, jnp.int32)
    if not config.dynamic_ntk:
        return jnp.ones(length.shape, jnp.float32)
    # Count doublings in integers: a float32 logarithm could end on the wrong side of a power of two.
    alpha = jnp.ones(length.shape, jnp.float32)
    limit = config.train_length
    value = 3
    while limit < 2**30:
        alpha = jnp.where(length > limit, float(value), alpha)
        limit *= 2
        value = value * 2 + 1
    return alpha


def segment_lengths(segment_ids_BL: jax.Array) -> jax.Array:
    """[B, L] int32: for every token the number of tokens in its segment."""
    return jnp.sum(segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :], axis=-1, dtype=jnp.int32)


def rotary_of(config: DecoderConfig, positions_BL: jax.Array, alpha: jax.Array | None) -> Rotary:
    """Rotary angles and log-n factors.

    With alpha the rotary base is rope_base * alpha^(K / (K - 2)). The query at 1-based position i > train_length is
    multiplied by log(i) / log(train_length).

    Args:
      config: of the decoder.
      positions_BL: int32, 0-based within the sample.
      alpha: None in training, which uses neither NTK nor log-n. At evaluation the NTK factor: a scalar, [B] or [B, L].
    """
    size = config.head_dim
    exponent_R = np.arange(0, size, 2, dtype=np.float64)
    frequency_R = jnp.asarray((config.rope_base ** (-exponent_R / size)).astype(np.float32))
    angles_BLR = positions_BL[..., None].astype(jnp.float32) * frequency_R
    logn_BL = None
    if alpha is not None:
        alpha = jnp.asarray(alpha, jnp.float32)
        alpha_BL1 = alpha.reshape(*alpha.shape, *[1] * (3 - alpha.ndim))
        # (alpha^(size / (size - 2)))^(-exponent / size), exactly 1 for alpha 1.
        angles_BLR *= alpha_BL1 ** (-jnp.asarray(exponent_R / max(size - 2, 1), jnp.float32))
        if config.logn_attention:
            number_BL = positions_BL.astype(jnp.float32) + 1  # the position, counted from 1
            factor_BL = jnp.log(number_BL) / math.log(config.train_length)
            logn_BL = jnp.where(number_BL > config.train_length, factor_BL, 1.0)
    return Rotary(jnp.cos(angles_BLR), jnp.sin(angles_BLR), logn_BL)


def rotate(x_BLNK: jax.Array, cos_BLR: jax.Array, sin_BLR: jax.Array, by_product: bool = False) -> jax.Array:
    """Rotary embedding of the two halves of each head (NeoX), in float32, cast back.

    Args:
      x_BLNK: queries or keys, in the compute dtype.
      cos_BLR, sin_BLR: float32, from `rotary_of`.
      by_product: whether to swap the halves by a matrix product with a permutation, which is exact. TPUs cannot shift
        data within their 128 lanes inside a fusion, so plain slices would be written to memory in float32 and read
        again.
    """
    if not by_product:
        first, second = jnp.split(x_BLNK.astype(jnp.float32), 2, axis=-1)
        cos = cos_BLR[:, :, None]
        sin = sin_BLR[:, :, None]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BLNK.dtype)
    size = x_BLNK.shape[-1]
    swap_KK = jnp.roll(jnp.eye(size, dtype=x_BLNK.dtype), size // 2, axis=1)
    swapped = jnp.einsum(
        "BLNK,KJ->BLNJ",
        x_BLNK,
        swap_KK,
        precision=jax.lax.Precision.HIGHEST if x_BLNK.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    cos = jnp.concatenate([cos_BLR, cos_BLR], axis=-1)[:, :, None]
    sin = jnp.concatenate([-sin_BLR, sin_BLR], axis=-1)[:, :, None]
    return (x_BLNK.astype(jnp.float32) * cos + swapped * sin).astype(x_BLNK.dtype)


class DecoderAttention(nn.Module):
    """Causal self-attention over packed rows, of one new token per row over a cache, or of rows after one prefix."""

    config: DecoderConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        rotary: Rotary,
        segment_ids_BL: jax.Array | None,
        valid_BT: jax.Array | None,
        cache: KeyValue | None,
        column: jax.Array | int | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """[B, L, D] to [B, L, D], and the new keys and values; see `DecoderBlock` for the arguments."""
        config = self.config
        compute = self.compute
        inputs = (config.width,)
        heads = (config.heads, config.head_dim)
        init = nn.initializers.normal(config.initializer_range)
        out_init = nn.initializers.normal(config.initializer_range * (2 * config.layers) ** -0.5)
        qkv = Projection(inputs, (3, *heads), compute.compute_dtype, init, unstack=True, name="qkv")
        out = Projection(heads, inputs, compute.compute_dtype, out_init, use_bias=False, name="out")

        q_BLNK, k_BLNK, v_BLNK = (named(part, "qkv") for part in qkv(x_BLD))
        q_BLNK = rotate(q_BLNK, rotary.cos_BLR, rotary.sin_BLR, compute.rotary_by_product)
        k_BLNK = rotate(k_BLNK, rotary.cos_BLR, rotary.sin_BLR, compute.rotary_by_product)
        if rotary.logn_BL is not None:
            q_BLNK *= rotary.logn_BL[:, :, None, None].astype(q_BLNK.dtype)
        new = KeyValue(jnp.swapaxes(k_BLNK, 1, 2), jnp.swapaxes(v_BLNK, 1, 2))
        if cache is None or valid_BT is None:
            out_BLNK = attention(
                q_BLNK, k_BLNK, v_BLNK, segment_ids_BL=segment_ids_BL, causal=True, implementation=compute.attention
            )
        elif segment_ids_BL is not None:
            out_BLNK = attention_after_prefix(
                q_BLNK, k_BLNK, v_BLNK, segment_ids_BL, cache.key[0], cache.value[0], valid_BT[0]
            )
        else:
            if column is not None:  # before the attention, or the compiler for CPUs would copy what both need
                cache = new = written(cache, new, column)
            out_BNK = decode_attention(q_BLNK[:, 0], k_BLNK[:, 0], v_BLNK[:, 0], cache.key, cache.value, valid_BT)
            out_BLNK = out_BNK[:, None]
        return named(out(out_BLNK), "attention_out"), new


class DecoderMlp(nn.Module):
    """down(up(x) * silu(gate(x))); the release calls `up` w1 and `gate` w2."""

    config: DecoderConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, D] in the compute dtype."""
        config = self.config
        width, hidden, dtype = (config.width,), (config.mlp_dim,), self.compute.compute_dtype
        init = nn.initializers.normal(config.initializer_range)
        down_init = nn.initializers.normal(config.initializer_range * (2 * config.layers) ** -0.5)
        up_BLF = Projection(width, hidden, dtype, init, use_bias=False, name="up")(x_BLD)
        gate_BLF = Projection(width, hidden, dtype, init, use_bias=False, name="gate")(x_BLD)
        hidden_BLF = named(up_BLF, "mlp_up") * jax.nn.silu(named(gate_BLF, "mlp_gate"))
        return Projection(hidden, width, dtype, down_init, use_bias=False, name="down")(hidden_BLF)


class DecoderBlock(nn.Module):
    """Pre-norm block, in the form that `nn.scan` wants. Returns its new keys and values if `keep_kv`."""

    config: DecoderConfig
    compute: ComputeConfig
    keep_kv: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        rotary: Rotary,
        segment_ids_BL: jax.Array | None,
        valid_BT: jax.Array | None,
        cache: KeyValue | None,
        column: jax.Array | int | None = None,
    ) -> tuple[jax.Array, KeyValue | None]:
        """[B, L, D] to [B, L, D], and its keys and values or None.

        See `Decoder` for the arguments; `cache` is of this layer. With `column`, that of the new token, a scalar or
        [B], the layer's cache is returned with the new keys and values in it.
        """
        eps = self.config.rms_norm_eps
        x_BLD = over_rows(x_BLD)
        attn = DecoderAttention(self.config, self.compute, name="attn")
        mlp = DecoderMlp(self.config, self.compute, name="mlp")
        update_BLD, new = attn(RMSNorm(eps, name="ln_1")(x_BLD), rotary, segment_ids_BL, valid_BT, cache, column)
        x_BLD += update_BLD
        x_BLD += mlp(RMSNorm(eps, name="ln_2")(x_BLD))
        return x_BLD, new if self.keep_kv else None


class Decoder(nn.Module):
    """Embedding, blocks, final norm and untied output matrix.

    Fresh weights: normal with `initializer_range`, the outputs of the residual branches divided by sqrt(2 * layers),
    biases 0, norms 1 (released modeling_qwen.py).

    Attributes:
      config: sizes.
      compute: dtype, remat and attention; the attention is not `auto`.
      keep_kv: whether a call returns keys and values (inference).
    """

    config: DecoderConfig
    compute: ComputeConfig
    keep_kv: bool = False

    def setup(self) -> None:
        """Declares parameters and blocks."""
        config = self.config
        compute = self.compute
        init = nn.initializers.normal(config.initializer_range)
        self.embedding = self.param("embedding", init, (config.vocab_size, config.width), jnp.float32)
        in_axes = (nn.broadcast, nn.broadcast, nn.broadcast, 0)  # the cache alone has one entry per layer
        blocks = scan_blocks(DecoderBlock, config.layers, compute.remat_decoder, in_axes, compute.unroll_layers)
        self.blocks = blocks(config, compute, self.keep_kv)
        self.ln_f = RMSNorm(config.rms_norm_eps)
        self.lm_head = self.param("lm_head", init, (config.width, config.vocab_size), jnp.float32)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Ids [...] to [..., D] in the compute dtype; an id outside the vocabulary gives NaN, not another token."""
        return lookup(self.embedding, tokens, self.compute.compute_dtype)

    def __call__(
        self,
        x_BLD: jax.Array,
        rotary: Rotary,
        *,
        segment_ids_BL: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        cache: KeyValue | None = None,
    ) -> tuple[jax.Array, KeyValue | None]:
        """Runs all blocks and the final norm.

        Over whole rows without a cache, for one new token per row (L = 1) with a cache, or, with segments and the cache
        of one row, for rows that all continue that row.

        Args:
          x_BLD: embeddings in the compute dtype.
          rotary: of the L tokens.
          segment_ids_BL: int32, for more than one token per row; attention is causal and stays within a segment.
          valid_BT: bool, with a cache; the cached tokens to attend to.
          cache: [S, B, N, T, K] keys and values of the tokens so far; B is 1 if all rows continue the same tokens.

        Returns:
          hidden [B, L, D] after the final norm, and the new keys and values [S, B, N, L, K] if `keep_kv`.
        """
        x_BLD, new = self.blocks(x_BLD, rotary, segment_ids_BL, valid_BT, cache)
        return self.ln_f(x_BLD), new

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] to float32 [..., V], accumulated in float32."""
        dtype = self.compute.compute_dtype
        return jnp.matmul(hidden.astype(dtype), self.lm_head.astype(dtype), preferred_element_type=jnp.float32)
