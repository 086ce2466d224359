"""Cross-entropy over a large vocabulary without the logits of all tokens at once.

Supervised tokens are moved to the front, the rest is never multiplied by the vocabulary: image slots and prompts
have no targets. What remains runs in chunks; each computes its part of the loss and of the gradients in one go, so
that logits exist for one chunk only and no product is computed twice.

Shape suffixes: B rows, L tokens, D width, V vocabulary, N parts of the batch (devices that split its rows),
T tokens of one part, C tokens of one chunk.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def token_loss_sum(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    lm_head_DV: jax.Array,
    *,
    chunk: int,
    train_head: bool,
    parts: int = 1,
    head_sharding: Any = None,
) -> jax.Array:
    """Sum over supervised tokens of -log p(target), float32 scalar; differentiable in `hidden` and `lm_head`.

    Args:
      hidden_BLD: final hidden states in the compute dtype.
      targets_BL: int32 ids; anything where the mask is 0.
      mask_BL: float32, weight of each token, 0 where it is not supervised.
      lm_head_DV: output embedding; its product runs in the dtype of `hidden`, logits and sums in float32.
      chunk: tokens of one part whose logits exist at once.
      train_head: whether the gradient of `lm_head` is wanted; False saves its matrix product and memory.
      parts: over how many devices the rows are split. Each part is sorted and cut on its own, so that no token
        leaves its device. B must be a multiple of it.
      head_sharding: how the gradient of `lm_head` lies on the devices, so that it is reduce-scattered, in the dtype of
        `hidden` like those of all other kernels; None leaves it to the compiler.
    """
    rows, length, width = hidden_BLD.shape
    tokens = rows * length // parts
    hidden_NTD = hidden_BLD.reshape(parts, tokens, width)
    targets_NT, mask_NT = targets_BL.reshape(parts, tokens), mask_BL.reshape(parts, tokens)
    return _loss(hidden_NTD, targets_NT, mask_NT, lm_head_DV, min(chunk, tokens), train_head, head_sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(
    hidden_NTD: jax.Array,
    targets_NT: jax.Array,
    mask_NT: jax.Array,
    lm_head_DV: jax.Array,
    chunk: int,
    train_head: bool,
    head_sharding: Any,
) -> jax.Array:
    return _run(hidden_NTD, targets_NT, mask_NT, lm_head_DV, chunk, train_head, head_sharding, gradients=False)[0]


def _forward(
    hidden_NTD: jax.Array,
    targets_NT: jax.Array,
    mask_NT: jax.Array,
    lm_head_DV: jax.Array,
    chunk: int,
    train_head: bool,
    head_sharding: Any,
) -> tuple[jax.Array, Any]:
    loss, dhidden_NTD, dhead_DV = _run(
        hidden_NTD, targets_NT, mask_NT, lm_head_DV, chunk, train_head, head_sharding, gradients=True
    )
    like_head = jnp.zeros((), lm_head_DV.dtype)  # only its dtype is needed
    return loss, (dhidden_NTD, dhead_DV, like_head)


def _backward(
    chunk: int, train_head: bool, head_sharding: Any, residual: Any, cotangent: jax.Array
) -> tuple[Any, Any, Any, Any]:
    del chunk, head_sharding
    dhidden_NTD, dhead_DV, like_head = residual
    dhead = (cotangent * dhead_DV).astype(like_head.dtype) if train_head else None
    return (cotangent * dhidden_NTD).astype(dhidden_NTD.dtype), None, None, dhead


_loss.defvjp(_forward, _backward)


def _run(
    hidden_NTD: jax.Array,
    targets_NT: jax.Array,
    mask_NT: jax.Array,
    lm_head_DV: jax.Array,
    chunk: int,
    train_head: bool,
    head_sharding: Any,
    *,
    gradients: bool,
) -> tuple[jax.Array, Any, Any]:
    """The loss, and with `gradients` its derivatives (d hidden [N, T, D], d lm_head [D, V] or None)."""
    dtype = hidden_NTD.dtype
    tokens = hidden_NTD.shape[1]
    chunks = -(-tokens // chunk)
    padded = chunks * chunk
    head_DV = lm_head_DV.astype(dtype)

    # Stable, so that tokens keep their order and the result does not depend on the sort's whims.
    order_NT = jnp.argsort(mask_NT == 0, axis=1, stable=True)
    fill = ((0, 0), (0, padded - tokens))
    sorted_hidden = jnp.pad(jnp.take_along_axis(hidden_NTD, order_NT[..., None], axis=1), (*fill, (0, 0)))
    sorted_targets = jnp.pad(jnp.take_along_axis(targets_NT, order_NT, axis=1), fill)
    sorted_mask = jnp.pad(jnp.take_along_axis(mask_NT, order_NT, axis=1), fill)
    needed = jnp.max((jnp.sum(mask_NT != 0, axis=1) + chunk - 1) // chunk)

    def one_chunk(index: jax.Array | int, carry: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any, Any]:
        loss, dhidden, dhead = carry
        start = index * chunk
        hidden_NCD = jax.lax.dynamic_slice_in_dim(sorted_hidden, start, chunk, axis=1)
        targets_NC = jax.lax.dynamic_slice_in_dim(sorted_targets, start, chunk, axis=1)
        mask_NC = jax.lax.dynamic_slice_in_dim(sorted_mask, start, chunk, axis=1)
        logits_NCV = jnp.einsum("ncd,dv->ncv", hidden_NCD, head_DV, preferred_element_type=jnp.float32)
        lse_NC = jax.nn.logsumexp(logits_NCV, axis=-1)
        # A comparison instead of a gather: it fuses, and it needs no communication when V is split over devices.
        hit_NCV = jax.lax.broadcasted_iota(jnp.int32, logits_NCV.shape, 2) == targets_NC[..., None]
        target_NC = jnp.sum(jnp.where(hit_NCV, logits_NCV, 0.0), axis=-1)
        loss += jnp.sum((lse_NC - target_NC) * mask_NC)
        if gradients:
            probability_NCV = jnp.exp(logits_NCV - lse_NC[..., None])
            dlogits_NCV = ((probability_NCV - hit_NCV) * mask_NC[..., None]).astype(dtype)
            dhidden_NCD = jnp.einsum("ncv,dv->ncd", dlogits_NCV, head_DV).astype(dtype)
            dhidden = jax.lax.dynamic_update_slice_in_dim(dhidden, dhidden_NCD, start, axis=1)
            if train_head:
                product_DV = jnp.einsum("ncd,ncv->dv", hidden_NCD, dlogits_NCV)
                if head_sharding is not None:
                    product_DV = jax.lax.with_sharding_constraint(product_DV, head_sharding)
                dhead += product_DV.astype(jnp.float32)
        return loss, dhidden, dhead

    carry: tuple[jax.Array, Any, Any] = (
        jnp.zeros((), jnp.float32),
        jnp.zeros(sorted_hidden.shape, dtype) if gradients else None,
        jnp.zeros(lm_head_DV.shape, jnp.float32) if gradients and train_head else None,
    )
    carry = one_chunk(0, carry) if chunks == 1 else jax.lax.fori_loop(0, needed, one_chunk, carry)
    loss, dhidden, dhead = carry
    if gradients:
        inverse_NT = jnp.argsort(order_NT, axis=1)
        dhidden = jnp.take_along_axis(dhidden[:, :tokens], inverse_NT[..., None], axis=1)
    return loss, dhidden, dhead
