"""Cross-entropy over a large vocabulary without the logits of all tokens at once.

Supervised tokens are moved to the front, the rest is never multiplied by the vocabulary: image slots and prompts
have no targets. What remains runs in chunks; each computes its part of the loss and of the gradients in one go, so
that logits exist for one chunk only and no product is computed twice.

Under a mesh every device sorts and cuts its own rows, so that no token leaves its device; the head is gathered, its
gradient reduce-scattered.

Shape suffixes: B rows, L tokens of a row, D width, V vocabulary, T tokens of one device, C tokens of one chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from qwenvl_jax.models.parallel import gather, rows_split, scatter_sum
from qwenvl_jax.sharding.mesh import BATCH_AXES as ROWS


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_loss_sum(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    lm_head_DV: jax.Array,
    chunk: int,
    train_head: bool,
) -> jax.Array:
    """Sum over supervised tokens of -log p(target), float32 scalar; differentiable in `hidden` and `lm_head`.

    Args:
      hidden_BLD: final hidden states in the compute dtype.
      targets_BL: int32 ids; anything where the mask is 0.
      mask_BL: float32, weight of each token, 0 where it is not supervised.
      lm_head_DV: output embedding; its product runs in the dtype of `hidden`, logits and sums in float32.
      chunk: tokens of one device whose logits exist at once.
      train_head: whether the gradient of `lm_head` is wanted; False saves its matrix product and memory.
    """
    return _loss(hidden_BLD, targets_BL, mask_BL, lm_head_DV, chunk, train_head, gradients=False)[0]


def _forward(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    lm_head_DV: jax.Array,
    chunk: int,
    train_head: bool,
) -> tuple[jax.Array, Any]:
    loss, dhidden_BLD, dhead_DV = _loss(hidden_BLD, targets_BL, mask_BL, lm_head_DV, chunk, train_head, gradients=True)
    like_head = jnp.zeros((), lm_head_DV.dtype)  # only its dtype is needed
    return loss, (dhidden_BLD, dhead_DV, like_head)


def _backward(chunk: int, train_head: bool, residual: Any, cotangent: jax.Array) -> tuple[Any, Any, Any, Any]:
    del chunk
    dhidden_BLD, dhead_DV, like_head = residual
    dhead = (cotangent * dhead_DV).astype(like_head.dtype) if train_head else None
    return (cotangent * dhidden_BLD).astype(dhidden_BLD.dtype), None, None, dhead


token_loss_sum.defvjp(_forward, _backward)


def _loss(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    lm_head_DV: jax.Array,
    chunk: int,
    train_head: bool,
    *,
    gradients: bool,
) -> tuple[jax.Array, Any, Any]:
    """The loss, and with `gradients` its derivatives (d hidden [B, L, D], d lm_head float32 [D, V] or None)."""
    lm_head_DV = lm_head_DV.astype(hidden_BLD.dtype)
    run = functools.partial(_of_device, chunk=chunk, train_head=train_head and gradients, gradients=gradients)
    split = rows_split(hidden_BLD.shape[0])
    if split is None or lm_head_DV.shape[0] % split.fsdp:
        return run(hidden_BLD, targets_BL, mask_BL, lm_head_DV)

    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    vocabulary = "tensor" if tensor > 1 and lm_head_DV.shape[1] % tensor == 0 else None

    def on_device(hidden_BLD: jax.Array, targets_BL: jax.Array, mask_BL: jax.Array, part: jax.Array) -> Any:
        loss, dhidden_BLD, dhead = run(
            hidden_BLD,
            targets_BL,
            mask_BL,
            gather(part, 0),
            most=lambda chunks: jax.lax.pmax(chunks, ROWS),
            reduce=lambda dhead_DV: scatter_sum(dhead_DV, 0),
            vocabulary=vocabulary,
        )
        return jax.lax.psum(loss, ROWS), dhidden_BLD, None if dhead is None else jax.lax.psum(dhead, "data")

    rows, head = P(ROWS), P("fsdp", vocabulary)
    return jax.shard_map(
        on_device,
        in_specs=(rows, rows, rows, head),
        out_specs=(P(), rows if gradients else None, head if train_head and gradients else None),
        axis_names={*ROWS, vocabulary} - {None},
        check_vma=False,
    )(hidden_BLD, targets_BL, mask_BL, lm_head_DV)


def _of_device(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    head_DV: jax.Array,
    *,
    chunk: int,
    train_head: bool,
    gradients: bool,
    most: Callable[[jax.Array], jax.Array] = lambda chunks: chunks,
    reduce: Callable[[jax.Array], jax.Array] = lambda dhead_DV: dhead_DV,
    vocabulary: str | None = None,
) -> tuple[jax.Array, Any, Any]:
    """`_loss` for the rows of one device and the whole head.

    Args:
      most: the most of a number over all devices, which run as many chunks as the one with most supervised tokens.
      reduce: the part of the head's gradient that stays here, summed over devices.
      vocabulary: the mesh axis over which the head's columns are split, each device having its own, or None.
    """

    def across(combine: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        return combine(x, vocabulary) if vocabulary else x

    dtype, shape = hidden_BLD.dtype, hidden_BLD.shape
    tokens = shape[0] * shape[1]
    chunk = min(chunk, tokens)
    chunks = -(-tokens // chunk)
    hidden_TD, targets_T, mask_T = hidden_BLD.reshape(tokens, -1), targets_BL.reshape(tokens), mask_BL.reshape(tokens)

    # Stable, so that tokens keep their order and the result does not depend on the sort's whims.
    order_T = jnp.argsort(mask_T == 0, stable=True)
    fill = (0, chunks * chunk - tokens)
    sorted_hidden = jnp.pad(hidden_TD[order_T], (fill, (0, 0)))
    sorted_targets, sorted_mask = (jnp.pad(x[order_T], fill) for x in (targets_T, mask_T))
    first = jax.lax.axis_index(vocabulary) * head_DV.shape[1] if vocabulary else 0  # id of this device's first column
    needed = most((jnp.sum(mask_T != 0) + chunk - 1) // chunk)

    def one_chunk(index: jax.Array | int, carry: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any, Any]:
        loss, dhidden, dhead = carry
        start = index * chunk
        hidden_CD, targets_C, mask_C = (
            jax.lax.dynamic_slice_in_dim(x, start, chunk) for x in (sorted_hidden, sorted_targets, sorted_mask)
        )
        logits_CV = jnp.matmul(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        top_C = across(jax.lax.pmax, jnp.max(logits_CV, axis=-1))
        sum_C = across(jax.lax.psum, jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=-1))
        lse_C = top_C + jnp.log(sum_C)
        # A comparison instead of a gather, because it fuses.
        hit_CV = jax.lax.broadcasted_iota(jnp.int32, logits_CV.shape, 1) + first == targets_C[:, None]
        target_C = across(jax.lax.psum, jnp.sum(jnp.where(hit_CV, logits_CV, 0.0), axis=-1))
        loss += jnp.sum((lse_C - target_C) * mask_C)
        if gradients:
            probability_CV = jnp.exp(logits_CV - lse_C[:, None])
            dlogits_CV = ((probability_CV - hit_CV) * mask_C[:, None]).astype(dtype)
            dhidden_CD = across(jax.lax.psum, jnp.einsum("cv,dv->cd", dlogits_CV, head_DV).astype(dtype))
            dhidden = jax.lax.dynamic_update_slice_in_dim(dhidden, dhidden_CD, start, axis=0)
            if train_head:
                dhead += reduce(jnp.einsum("cd,cv->dv", hidden_CD, dlogits_CV)).astype(jnp.float32)
        return loss, dhidden, dhead

    kept = jax.eval_shape(reduce, head_DV) if train_head else None
    carry: tuple[jax.Array, Any, Any] = (
        jnp.zeros((), jnp.float32),
        jnp.zeros(sorted_hidden.shape, dtype) if gradients else None,
        None if kept is None else jnp.zeros(kept.shape, jnp.float32),
    )
    carry = one_chunk(0, carry) if chunks == 1 else jax.lax.fori_loop(0, needed, one_chunk, carry)
    loss, dhidden, dhead = carry
    if gradients:
        dhidden = dhidden[jnp.argsort(order_T)].reshape(shape)
    return loss, dhidden, dhead
