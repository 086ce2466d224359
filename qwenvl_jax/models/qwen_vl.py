"""Qwen-VL as pure functions of a parameter tree.

Parameters are nested dicts with the top-level keys `vit`, `resampler` and `decoder`; blocks are stacked on a leading
layer axis. Every function takes the architecture (`ModelConfig`) and how to compute it (`ComputeConfig`). None takes
a mesh: sharding follows from the shardings of the arguments.

The attention that `ComputeConfig` names is used unchecked, so that a kernel can be compiled ahead of time for another
machine; only `auto` is resolved here, for the present backend. Mains check the name with `resolve_attention` first.

Shape suffixes: B rows, L tokens, T cached tokens, I images, H/W pixels, Q queries per image, F features (I * Q),
D width, N heads, K head size, V vocabulary, S stacked layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.models import decoder
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.models.cache import Cache, KeyValue, empty_cache, written
from qwenvl_jax.models.decoder import Rotary
from qwenvl_jax.models.layers import RMSNorm
from qwenvl_jax.models.parallel import take_features
from qwenvl_jax.models.resampler import Resampler
from qwenvl_jax.models.vit import Vit
from qwenvl_jax.params import Params


class QwenVL(nn.Module):
    """The three towers under their parameter names.

    Attributes:
      model: the architecture.
      compute: dtype, remat and attention; the attention is not `auto`.
      keep_kv: whether `decode` returns keys and values (inference).
    """

    model: ModelConfig
    compute: ComputeConfig
    keep_kv: bool = False

    def setup(self) -> None:
        """Declares the towers."""
        model = self.model
        compute = self.compute
        width = model.decoder.width
        self.vit = Vit(model.vit, width, compute)
        self.resampler = Resampler(model.resampler, model.vit.width, width, compute)
        self.decoder = decoder.Decoder(model.decoder, compute, self.keep_kv)

    def encode_images(self, images_IHWC: jax.Array) -> jax.Array:
        """[I, H, H, 3] uint8 to [I * Q, D]."""
        features_IQD = self.vit.head(self.resampler(self.vit(images_IHWC)))
        return features_IQD.reshape(-1, features_IQD.shape[-1])

    def embed(self, tokens: jax.Array) -> jax.Array:
        """See `Decoder.embed`."""
        return self.decoder.embed(tokens)

    def decode(self, x_BLD: jax.Array, rotary: Rotary, **visible: Any) -> tuple[jax.Array, KeyValue | None]:
        """See `Decoder.__call__`."""
        return self.decoder(x_BLD, rotary, **visible)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Decoder.logits`."""
        return self.decoder.logits(hidden)

    def touch(self) -> jax.Array:
        """Runs every module once on the smallest input, for initialisation."""
        patch = self.model.vit.patch_size
        features = self.encode_images(jnp.zeros((1, patch, patch, 3), jnp.uint8))
        tokens_BL = jnp.zeros((1, 1), jnp.int32)
        rotary = decoder.rotary_of(self.model.decoder, tokens_BL, None)
        hidden_BLD, _ = self.decode(self.embed(tokens_BL), rotary, segment_ids_BL=tokens_BL)
        return jnp.sum(self.logits(hidden_BLD)) + jnp.sum(features)


def _network(model: ModelConfig, compute: ComputeConfig, *, inference: bool = False) -> QwenVL:
    if compute.attention == "auto":
        resolved = resolve_attention("auto", jax.default_backend(), compute.compute_dtype)
        compute = dataclasses.replace(compute, attention=resolved)
    if inference:
        compute = dataclasses.replace(compute, remat_vit="none", remat_decoder="none")
    return QwenVL(model, compute, keep_kv=inference)


def _apply(network: QwenVL, params: Params, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return network.apply({"params": params}, *args, method=method, **kwargs)


# How the graph is traced to initialise it; parameters are float32 whatever a run computes in.
INITIALISATION = ComputeConfig(
    compute_dtype="float32",
    frozen_dtype="float32",
    attention="xla",
    remat_vit="none",
    remat_decoder="none",
    unroll_layers=False,
    loss_chunk=1,
)


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters; see `Vit`, `Resampler` and `Decoder` for the distributions.

    Args:
      model: the architecture.
      key: a JAX random key. The same key gives the same values under any sharding.
    """
    return dict(QwenVL(model, INITIALISATION).init(key, method=QwenVL.touch)["params"])


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
      [I * Q, D] in the compute dtype; feature q of image i has the index i * Q + q.
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
    """Embeddings of tokens, with image features in the slots of images.

    Args:
      tokens_BL: int32 ids.
      image_slot_BL: int32, index into the features of the row's group or -1 for text; ignored without features.
      features_FD: from `encode_images`, or None.
      image_groups: number of equal groups of rows and of features; a row uses the features of its group only.

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
      segment_ids_BL: int32; attention is causal and stays within a segment. Padding (0) is a segment of its own.
      positions_BL: int32, 0-based within the segment.
      training: True uses neither log-n attention nor dynamic NTK; False uses both, by the length of each segment.

    Returns:
      [B, L, D] after the final norm, in the compute dtype.
    """
    alpha = None if training else decoder.ntk_alpha(model.decoder, decoder.segment_lengths(segment_ids_BL))
    rotary = decoder.rotary_of(model.decoder, positions_BL, alpha)
    network = _network(model, compute)
    hidden_BLD, _ = _apply(network, params, QwenVL.decode, embeddings_BLD, rotary, segment_ids_BL=segment_ids_BL)
    return hidden_BLD


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

    The arguments are the fields of one microbatch of `qwenvl_jax.data.schema.Batch`. If `images_IHWC` is None, the
    vision side is skipped and `params` may lack it. See `embed` for `image_groups`, `hidden_states` for `training`.
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
    """The NTK factor of a prompt, by its number of tokens; `decode_step` keeps that of the prefill."""
    return decoder.ntk_alpha(model.decoder, length)


def init_cache(model: ModelConfig, compute: ComputeConfig, batch: int, length: int, *, apart: bool = False) -> Cache:
    """An empty cache in the compute dtype for `batch` rows of up to `length` tokens, prompt and answer.

    With `apart`, which needs `layers_apart`, every layer has a part of its own.
    """
    return empty_cache(model.decoder, compute.compute_dtype, batch, length, apart=apart)


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
      embeddings_BLD: from `embed`; prompts are padded on the left, so that all end in column L - 1, or on the right.
      positions_BL: int32, 0-based from the first valid token; anything in padding.
      valid_BL: bool, False in padding.
      cache: from `init_cache`, at least L long.

    Returns:
      hidden [B, L, D] after the final norm, and the cache. Log-n and NTK follow each prompt's own length. The released
      model takes the padded length of the batch, which is the same for a prompt that is alone in its batch.
    """
    alpha_B = decoder.ntk_alpha(model.decoder, jnp.sum(valid_BL, axis=-1, dtype=jnp.int32))
    rotary = decoder.rotary_of(model.decoder, jnp.maximum(positions_BL, 0), alpha_B)
    network = _network(model, compute, inference=True)
    segment_ids_BL = valid_BL.astype(jnp.int32)
    return _decode(network, params, embeddings_BLD, rotary, cache, 0, segment_ids_BL=segment_ids_BL)


def after_prefix(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    embeddings_BLD: jax.Array,
    valid_BL: jax.Array,
    prefix: Cache,
    length: jax.Array | int,
) -> jax.Array:
    """Runs rows that all continue one prefix, whose keys and values are computed already.

    Args:
      embeddings_BLD: from `embed`, of the tokens after the prefix, padded on the right.
      valid_BL: bool, False in padding.
      prefix: the cache of one row, from `prefill`.
      length: int32 scalar, tokens of the prefix; further columns are ignored.

    Returns:
      hidden [B, L, D] after the final norm, as `prefill` gives it for the whole rows. None of them may be so long that
      its NTK factor differs from that of the prefix.
    """
    positions_BL = jnp.broadcast_to(length + jnp.arange(valid_BL.shape[1]), valid_BL.shape)
    rotary = decoder.rotary_of(model.decoder, positions_BL, decoder.ntk_alpha(model.decoder, length))
    network = _network(model, compute, inference=True)
    valid_1T = jnp.arange(prefix.columns)[None] < length
    segment_ids_BL = valid_BL.astype(jnp.int32)
    return _decode(
        network, params, embeddings_BLD, rotary, prefix, None, segment_ids_BL=segment_ids_BL, valid_BT=valid_1T
    )[0]


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
      valid_BT: bool, False for the padding of the prompts; columns from `index` on are ignored.
      index: int32, the column of the cache for this token: a scalar (L for the first after the prefill), or [B].
      cache: of the tokens before.
      ntk_alpha: float32 scalar or [B], of the prefill (`ntk_alpha(model, valid_BL.sum(-1))`).

    Returns:
      hidden [B, D] after the final norm, and the cache with the token's column filled.
    """
    network = _network(model, compute, inference=True)
    x_B1D = _apply(network, params, QwenVL.embed, token_B[:, None])
    rotary = decoder.rotary_of(model.decoder, position_B[:, None], jnp.asarray(ntk_alpha))
    valid_BT = valid_BT & (jnp.arange(valid_BT.shape[1]) < jnp.asarray(index)[..., None])
    hidden_B1D, cache = _decode(network, params, x_B1D, rotary, cache, index, valid_BT=valid_BT)
    return hidden_B1D[:, 0], cache


def layers_apart(params: Params) -> Params:
    """The same parameters, in which the blocks of the decoder are a tuple of layers, for `prefill` and `decode_step`.

    The compilers for GPUs and CPUs copy a layer out of a stack before they multiply, so that a step of decoding would
    move every weight three times. The other functions of this module ignore the blocks.
    """
    stacked = params["decoder"]["blocks"]
    count = len(jax.tree.leaves(stacked)[0])
    layers = tuple(jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked) for layer in range(count))
    return {**params, "decoder": {**params["decoder"], "blocks": layers}}


def _decode(
    network: QwenVL,
    params: Params,
    x_BLD: jax.Array,
    rotary: Rotary,
    cache: Cache,
    column: jax.Array | int | None,
    *,
    segment_ids_BL: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Hidden states after the final norm, and the cache with the L tokens in its columns from `column` on, if any.

    See `Decoder.__call__`; the layers are in a stack or apart (`layers_apart`), and the cache is read if there is
    `valid_BT`.
    """
    layers = params["decoder"]["blocks"]
    reads = valid_BT is not None
    if not isinstance(layers, tuple):
        (past,) = cache.parts
        visible = {"segment_ids_BL": segment_ids_BL, "valid_BT": valid_BT, "cache": past if reads else None}
        hidden_BLD, stack = _apply(network, params, QwenVL.decode, x_BLD, rotary, **visible)
        return hidden_BLD, cache if column is None else Cache((written(past, stack, column),))

    block = decoder.DecoderBlock(network.model.decoder, network.compute, keep_kv=True)
    inside = reads and not cache.stacked  # whether a block itself writes into the part of its layer
    new_parts: list[KeyValue] = []
    new: Any
    for number, layer in enumerate(layers):
        of_layer = cache.of_layer(number) if reads else None
        into = column if inside else None
        x_BLD, new = block.apply({"params": layer}, x_BLD, rotary, segment_ids_BL, valid_BT, of_layer, into)
        new_parts.append(new)
    if cache.stacked and column is not None:
        new_parts = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_parts)]
    if not inside and column is not None:
        new_parts = [written(past, part, column) for past, part in zip(cache.parts, new_parts, strict=True)]
    norm = RMSNorm(network.model.decoder.rms_norm_eps)
    normed_BLD: Any = norm.apply({"params": params["decoder"]["ln_f"]}, x_BLD)
    return normed_BLD, cache if column is None else Cache(tuple(new_parts))
