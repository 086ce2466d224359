"""Qwen-VL as pure functions of a parameter tree.

Parameters are nested dicts with the top-level keys `vit`, `resampler` and `decoder`; blocks are stacked on a leading
layer axis. Every function takes the architecture (`ModelConfig`) and how to compute it (`ComputeConfig`); no state,
no mesh: sharding follows from the arguments' shardings.

The attention of `ComputeConfig` is taken as it is, so that a kernel can be compiled ahead for another machine; only
`auto` is resolved here, for the present backend. Mains check the name with `resolve_attention` first.

Shape suffixes: B rows, L tokens, T cached tokens, I images, H/W pixels, Q queries per image, F features (I * Q),
D width, N heads, K head size, V vocabulary, S stacked layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.models import decoder
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.models.decoder import KeyValue
from qwenvl_jax.models.parallel import take_features
from qwenvl_jax.models.resampler import Resampler
from qwenvl_jax.models.vit import Vit
from qwenvl_jax.params import Params


class Cache(NamedTuple):
    """Keys (after rotary) and values of all layers, [S, B, T, N, K] in the compute dtype."""

    key: jax.Array
    value: jax.Array


class QwenVL(nn.Module):
    """The three towers under their parameter names."""

    model: ModelConfig
    dtype: Any
    implementation: str
    remat_vit: str
    remat_decoder: str
    unroll: bool
    keep_kv: bool = False
    rotary_by_product: bool = False

    def setup(self) -> None:
        model, width = self.model, self.model.decoder.width
        self.vit = Vit(model.vit, width, self.dtype, self.implementation, self.remat_vit, self.unroll)
        self.resampler = Resampler(model.resampler, model.vit.width, width, self.dtype, self.implementation)
        self.decoder = decoder.Decoder(
            model.decoder,
            self.dtype,
            self.implementation,
            self.remat_decoder,
            self.unroll,
            self.keep_kv,
            self.rotary_by_product,
        )

    def encode_images(self, images_IHWC: jax.Array) -> jax.Array:
        features_IQD = self.vit.head(self.resampler(self.vit(images_IHWC)))
        return features_IQD.reshape(-1, features_IQD.shape[-1])

    def embed(self, tokens: jax.Array) -> jax.Array:
        return self.decoder.embed(tokens)

    def decode(
        self, x_BLD: jax.Array, place: decoder.Positional, visible: jax.Array, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        return self.decoder(x_BLD, place, visible, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.decoder.logits(hidden)

    def touch(self) -> jax.Array:
        """Runs every part once on the smallest input, for initialisation."""
        patch = self.model.vit.patch_size
        features = self.encode_images(jnp.zeros((1, patch, patch, 3), jnp.uint8))
        tokens_BL = jnp.zeros((1, 1), jnp.int32)
        place = decoder.positional(self.model.decoder, tokens_BL, None)
        hidden, _ = self.decode(self.embed(tokens_BL), place, tokens_BL, None)
        return jnp.sum(self.logits(hidden)) + jnp.sum(features)


def _network(model: ModelConfig, compute: ComputeConfig, *, inference: bool = False) -> QwenVL:
    name = compute.attention
    if name == "auto":
        name = resolve_attention(name, jax.default_backend(), compute.compute_dtype)
    remat_vit, remat_decoder = ("none", "none") if inference else (compute.remat_vit, compute.remat_decoder)
    dtype = jnp.dtype(compute.compute_dtype)
    by_product = compute.rotary_by_product
    return QwenVL(model, dtype, name, remat_vit, remat_decoder, compute.unroll_layers, inference, by_product)


def _apply(network: QwenVL, params: Params, method: Callable[..., Any], *args: Any) -> Any:
    return network.apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters; see `Vit`, `Resampler` and `Decoder` for the distributions.

    Args:
      model: the architecture.
      key: a JAX random key. The same key gives the same values under any sharding.
    """
    network = QwenVL(model, jnp.dtype("float32"), "xla", "none", "none", False)
    return dict(network.init(key, method=QwenVL.touch)["params"])


def abstract_params(model: ModelConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))


def encode_images(params: Params, model: ModelConfig, compute: ComputeConfig, images_IHWC: jax.Array) -> jax.Array:
    """Features of images: ViT, resampler, `ln_post`, `proj`.

    Args:
      params: the tree of `init_params`, any float dtype; `decoder` may be absent.
      model: the architecture.
      compute: dtype, remat and attention.
      images_IHWC: uint8 [I, H, H, 3] RGB pixels, H a multiple of the patch size; normalised here, on the device.

    Returns:
      [I * Q, D] in the compute dtype; feature q of image i lies at i * Q + q.
    """
    return _apply(_network(model, compute), params, QwenVL.encode_images, images_IHWC)


def embed(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    tokens_BL: jax.Array,
    image_slot_BL: jax.Array,
    features_FD: jax.Array | None,
    image_groups: int = 1,
) -> jax.Array:
    """Embeddings in which image features replace those of the image's slots.

    Args:
      tokens_BL: int32 ids.
      image_slot_BL: int32, index into the features of the row's group or -1 for text; ignored without features.
      features_FD: from `encode_images`, or None.
      image_groups: equal parts that rows and features are cut into; a row uses features of its own part only.

    Returns:
      [B, L, D] in the compute dtype.
    """
    x_BLD = _apply(_network(model, compute), params, QwenVL.embed, tokens_BL)
    if features_FD is None:
        return x_BLD
    slots_BLD = take_features(features_FD, image_slot_BL, image_groups)
    return jnp.where(image_slot_BL[..., None] >= 0, slots_BLD.astype(x_BLD.dtype), x_BLD)


def hidden_states(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    *,
    embeddings_BLD: jax.Array,
    segment_ids_BL: jax.Array,
    positions_BL: jax.Array,
    training: bool = True,
) -> jax.Array:
    """The decoder over packed rows.

    Args:
      embeddings_BLD: from `embed`.
      segment_ids_BL: int32; attention is causal and stays within a segment, padding (0) being one of its own.
      positions_BL: int32, 0-based within the segment.
      training: without log-n attention and dynamic NTK; otherwise with both, by the length of each segment.

    Returns:
      [B, L, D] after the final norm, in the compute dtype.
    """
    alpha = None if training else decoder.ntk_alpha(model.decoder, decoder.segment_lengths(segment_ids_BL))
    place = decoder.positional(model.decoder, positions_BL, alpha)
    return _apply(_network(model, compute), params, QwenVL.decode, embeddings_BLD, place, segment_ids_BL, None)[0]


def forward(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    *,
    tokens_BL: jax.Array,
    segment_ids_BL: jax.Array,
    positions_BL: jax.Array,
    image_slot_BL: jax.Array,
    images_IHWC: jax.Array | None,
    image_groups: int = 1,
    training: bool = True,
) -> jax.Array:
    """Images and packed rows to hidden states [B, L, D] after the final norm.

    The arguments are the fields of one microbatch of `qwenvl_jax.data.schema.Batch`; `images_IHWC` None skips the
    vision side (then `params` may lack it). See `embed` for `image_groups`, `hidden_states` for `training`.
    """
    features_FD = None if images_IHWC is None else encode_images(params, model, compute, images_IHWC)
    return hidden_states(
        params,
        model,
        compute,
        embeddings_BLD=embed(params, model, compute, tokens_BL, image_slot_BL, features_FD, image_groups),
        segment_ids_BL=segment_ids_BL,
        positions_BL=positions_BL,
        training=training,
    )


def logits(params: Params, model: ModelConfig, compute: ComputeConfig, hidden: jax.Array) -> jax.Array:
    """[..., D] hidden states to [..., V] logits in float32."""
    return _apply(_network(model, compute), params, QwenVL.logits, hidden)


def ntk_alpha(model: ModelConfig, length: jax.Array | int) -> jax.Array:
    """The NTK factor of a prompt, by its number of tokens; `decode_step` continues with that of the prefill."""
    return decoder.ntk_alpha(model.decoder, length)


def init_cache(model: ModelConfig, compute: ComputeConfig, batch: int, length: int) -> Cache:
    """An empty cache for `batch` rows of up to `length` tokens, prompt and answer."""
    config = model.decoder
    shape = (config.layers, batch, length, config.heads, config.head_dim)
    dtype = jnp.dtype(compute.compute_dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def prefill(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    embeddings_BLD: jax.Array,
    positions_BL: jax.Array,
    valid_BL: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Runs whole prompts in evaluation mode and stores their keys and values in columns 0..L-1 of the cache.

    Args:
      embeddings_BLD: from `embed`; prompts are padded on the left, so that all end in column L - 1.
      positions_BL: int32, 0-based from the first valid token; anything in padding.
      valid_BL: bool, False in padding.
      cache: from `init_cache`, at least L long.

    Returns:
      hidden [B, L, D] after the final norm, and the cache. Log-n and NTK go by each prompt's own length (the
      released model takes the padded length of the batch; alone in its batch a prompt gives the same).
    """
    alpha_B = decoder.ntk_alpha(model.decoder, jnp.sum(valid_BL, axis=-1, dtype=jnp.int32))
    place = decoder.positional(model.decoder, jnp.maximum(positions_BL, 0), alpha_B)
    network = _network(model, compute, inference=True)
    hidden_BLD, new = _apply(network, params, QwenVL.decode, embeddings_BLD, place, valid_BL.astype(jnp.int32), None)
    start = (0, 0, 0, 0, 0)
    return hidden_BLD, Cache(
        jax.lax.dynamic_update_slice(cache.key, new.key, start),
        jax.lax.dynamic_update_slice(cache.value, new.value, start),
    )


def decode_step(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    token_B: jax.Array,
    position_B: jax.Array,
    valid_BT: jax.Array,
    index: jax.Array | int,
    cache: Cache,
    ntk_alpha: jax.Array | float,
) -> tuple[jax.Array, Cache]:
    """One more token for every row.

    Args:
      token_B: int32 ids.
      position_B: int32, 0-based position within the row's own sample.
      valid_BT: bool, False for the padding of the prompts; columns from `index` on do not matter.
      index: int32 scalar, the column of the cache that the token takes (L for the first after the prefill).
      cache: of the tokens before.
      ntk_alpha: float32 scalar or [B], of the prefill (`ntk_alpha(model, valid_BL.sum(-1))`).

    Returns:
      hidden [B, D] after the final norm, and the cache with the token's column filled.
    """
    network = _network(model, compute, inference=True)
    x_B1D = _apply(network, params, QwenVL.embed, token_B[:, None])
    place = decoder.positional(model.decoder, position_B[:, None], jnp.asarray(ntk_alpha))
    seen_BT = valid_BT & (jnp.arange(valid_BT.shape[1]) < index)
    hidden_B1D, new = _apply(network, params, QwenVL.decode, x_B1D, place, seen_BT, KeyValue(*cache))
    start = (0, 0, index, 0, 0)
    return hidden_B1D[:, 0], Cache(
        jax.lax.dynamic_update_slice(cache.key, new.key, start),
        jax.lax.dynamic_update_slice(cache.value, new.value, start),
    )
