"""Cross-entropy over a large vocabulary without the logits of all tokens at once.

Supervised tokens are sorted to the front. The others (image slots, prompts) have no targets and are never multiplied by
the output embedding. The supervised tokens are processed in chunks. Each chunk computes its part of the loss and of the
gradients together, so that logits exist for one chunk only and no product is computed twice.

Under a mesh every device sorts and cuts the tokens of its rows, so that no token leaves its device. The output
embedding ("head") is gathered and its gradient reduce-scattered.

The token losses of a chunk are also summed by source, for the log alone: these sums have no gradient and change none.

Shape suffixes: B rows, L tokens of a row, D width, V vocabulary, T tokens of one device, C tokens of one chunk,
S sources.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from qwenvl_jax.models.parallel import gather, rows_split, scatter_sum
from qwenvl_jax.sharding.mesh import BATCH_AXES as ROWS


class LossSums(NamedTuple):
    """Sums of -log p(target) over supervised tokens, in nats.

    Attributes:
      total: float32 scalar.
      by_source_S: float32, the sum of each source.
    """

    total: jax.Array
    by_source_S: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def token_loss_sum(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    sources_BL: jax.Array,
    lm_head_DV: jax.Array,
    source_count: int,
    chunk: int,
    train_head: bool,
) -> LossSums:
    """Sums of the token losses; `total` is differentiable in `hidden` and `lm_head`, `by_source_S` counts as constant.

    Args:
      hidden_BLD: final hidden states in the compute dtype.
      targets_BL: int32 ids; ignored if the mask is 0.
      mask_BL: float32, weight of each token; 0 if it is not supervised.
      sources_BL: int32, the index of each token's source, below `source_count`; ignored if the mask is 0.
      lm_head_DV: output embedding. Its product runs in the dtype of `hidden`, logits and sums in float32.
      source_count: S.
      chunk: tokens of one device whose logits exist at once.
      train_head: whether to compute the gradient of `lm_head`; False saves its matrix product and memory.
    """
    tokens = _Tokens(targets_BL, mask_BL, sources_BL)
    return _loss(hidden_BLD, tokens, lm_head_DV, source_count, chunk, train_head, gradients=False)[0]


def _forward(
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    mask_BL: jax.Array,
    sources_BL: jax.Array,
    lm_head_DV: jax.Array,
    source_count: int,
    chunk: int,
    train_head: bool,
) -> tuple[LossSums, Any]:
    tokens = _Tokens(targets_BL, mask_BL, sources_BL)
    sums, dhidden_BLD, dhead_DV = _loss(hidden_BLD, tokens, lm_head_DV, source_count, chunk, train_head, gradients=True)
    like_head = jnp.zeros((), lm_head_DV.dtype)  # only its dtype is needed
    return sums, (dhidden_BLD, dhead_DV, like_head)


def _backward(
    source_count: int, chunk: int, train_head: bool, residual: Any, cotangents: LossSums
) -> tuple[Any, Any, Any, Any, Any]:
    del source_count, chunk
    dhidden_BLD, dhead_DV, like_head = residual
    cotangent = cotangents.total
    dhead = (cotangent * dhead_DV).astype(like_head.dtype) if train_head else None
    return (cotangent * dhidden_BLD).astype(dhidden_BLD.dtype), None, None, None, dhead


token_loss_sum.defvjp(_forward, _backward)


class _Tokens(NamedTuple):
    """What the loss needs of each token in addition to its hidden state; see `token_loss_sum`."""

    targets: jax.Array
    mask: jax.Array
    sources: jax.Array


def sum_by_source(values: jax.Array, sources: jax.Array, source_count: int) -> jax.Array:
    """The sums of `values` by source, float32 [S].

    Comparisons and one reduction instead of a scatter, which TPUs compute one element after the other.

    Args:
      values: float32 of any shape.
      sources: int32 of the same shape, the number of each value's source.
      source_count: S.
    """
    number_S = jnp.arange(source_count).reshape(-1, *[1] * values.ndim)
    return jnp.sum(jnp.where(sources == number_S, values, 0.0), axis=range(1, values.ndim + 1))


class Collectives(NamedTuple):
    """What the devices exchange while each computes the loss of its rows; the default is one device alone.

    Attributes:
      max_over_devices: the maximum of a scalar over all devices. All run as many chunks as the device with the most
        supervised tokens.
      scatter_head: the sum of the head's gradient over devices, of which each device keeps its part.
      vocabulary_axis: the mesh axis over which the head's columns are split, or None.
    """

    max_over_devices: Callable[[jax.Array], jax.Array] = lambda chunks: chunks
    scatter_head: Callable[[jax.Array], jax.Array] = lambda dhead_DV: dhead_DV
    vocabulary_axis: str | None = None

    def over_vocabulary(self, combine: Callable[[jax.Array, str], jax.Array], x: jax.Array) -> jax.Array:
        """`combine` (e.g. `jax.lax.psum`) over the parts of the vocabulary."""
        return combine(x, self.vocabulary_axis) if self.vocabulary_axis else x

    def first_id(self, head_DV: jax.Array) -> jax.Array | int:
        """The token id of the first column of this device's part of the head."""
        return jax.lax.axis_index(self.vocabulary_axis) * head_DV.shape[1] if self.vocabulary_axis else 0


def _loss(
    hidden_BLD: jax.Array,
    tokens_BL: _Tokens,
    lm_head_DV: jax.Array,
    source_count: int,
    chunk: int,
    train_head: bool,
    *,
    gradients: bool,
) -> tuple[LossSums, Any, Any]:
    """The sums, and with `gradients` the derivatives of the total.

    Returns:
      The sums, d hidden [B, L, D] or None, and d lm_head float32 [D, V] or None.
    """
    lm_head_DV = lm_head_DV.astype(hidden_BLD.dtype)
    train_head = train_head and gradients
    run = functools.partial(
        _of_device, source_count=source_count, chunk=chunk, train_head=train_head, gradients=gradients
    )
    split = rows_split(hidden_BLD.shape[0])
    if split is None or lm_head_DV.shape[0] % split.fsdp:
        return run(hidden_BLD, tokens_BL, lm_head_DV, Collectives())

    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    vocabulary_axis = "tensor" if tensor > 1 and lm_head_DV.shape[1] % tensor == 0 else None
    collectives = Collectives(
        max_over_devices=lambda chunks: jax.lax.pmax(chunks, ROWS),
        scatter_head=lambda dhead_DV: scatter_sum(dhead_DV, 0),
        vocabulary_axis=vocabulary_axis,
    )

    def on_device(hidden_BLD: jax.Array, tokens_BL: _Tokens, head_part: jax.Array) -> Any:
        sums, dhidden_BLD, dhead = run(hidden_BLD, tokens_BL, gather(head_part, 0), collectives)
        return jax.lax.psum(sums, ROWS), dhidden_BLD, None if dhead is None else jax.lax.psum(dhead, "data")

    rows = P(ROWS)
    head = P("fsdp", vocabulary_axis)
    return jax.shard_map(
        on_device,
        in_specs=(rows, rows, head),
        out_specs=(P(), rows if gradients else None, head if train_head else None),
        axis_names={*ROWS, vocabulary_axis} - {None},
        check_vma=False,
    )(hidden_BLD, tokens_BL, lm_head_DV)


def _of_device(
    hidden_BLD: jax.Array,
    tokens_BL: _Tokens,
    head_DV: jax.Array,
    collectives: Collectives,
    *,
    source_count: int,
    chunk: int,
    train_head: bool,
    gradients: bool,
) -> tuple[LossSums, Any, Any]:
    """`_loss` for the rows of one device and the gathered head; d head is the part that `scatter_head` leaves here."""
    dtype = hidden_BLD.dtype
    count = tokens_BL.mask.size
    chunk = min(chunk, count)
    chunks = -(-count // chunk)
    hidden_TD = hidden_BLD.reshape(count, -1)
    mask_T = tokens_BL.mask.reshape(count)

    # A stable sort keeps the order of the tokens, so that the result does not depend on the sorting algorithm.
    order_T = jnp.argsort(mask_T == 0, stable=True)
    padding = (0, chunks * chunk - count)
    hidden_TD = jnp.pad(hidden_TD[order_T], (padding, (0, 0)))
    tokens_T = jax.tree.map(lambda field: jnp.pad(jnp.asarray(field).reshape(count)[order_T], padding), tokens_BL)
    first_id = collectives.first_id(head_DV)
    needed = collectives.max_over_devices((jnp.sum(mask_T != 0) + chunk - 1) // chunk)

    def one_chunk(index: jax.Array | int, carry: tuple[LossSums, Any, Any]) -> tuple[LossSums, Any, Any]:
        sums, dhidden_TD, dhead = carry
        start = index * chunk
        hidden_CD = jax.lax.dynamic_slice_in_dim(hidden_TD, start, chunk)
        targets_C, mask_C, sources_C = (jax.lax.dynamic_slice_in_dim(field, start, chunk) for field in tokens_T)
        logits_CV = jnp.matmul(hidden_CD, head_DV, preferred_element_type=jnp.float32)
        loss_C, lse_C, hit_CV = _cross_entropy(logits_CV, targets_C, first_id, collectives)
        loss_C *= mask_C
        sums = LossSums(sums.total + jnp.sum(loss_C), sums.by_source_S + sum_by_source(loss_C, sources_C, source_count))
        if gradients:
            probability_CV = jnp.exp(logits_CV - lse_C[:, None])
            dlogits_CV = ((probability_CV - hit_CV) * mask_C[:, None]).astype(dtype)
            dhidden_CD = jnp.einsum("CV,DV->CD", dlogits_CV, head_DV).astype(dtype)
            dhidden_CD = collectives.over_vocabulary(jax.lax.psum, dhidden_CD)
            dhidden_TD = jax.lax.dynamic_update_slice_in_dim(dhidden_TD, dhidden_CD, start, axis=0)
            if train_head:
                dhead_DV = jnp.einsum("CD,CV->DV", hidden_CD, dlogits_CV)
                dhead += collectives.scatter_head(dhead_DV).astype(jnp.float32)
        return sums, dhidden_TD, dhead

    dhidden_TD = jnp.zeros(hidden_TD.shape, dtype) if gradients else None
    dhead = None
    if train_head:
        dhead = jnp.zeros(jax.eval_shape(collectives.scatter_head, head_DV).shape, jnp.float32)
    zeros = LossSums(jnp.zeros((), jnp.float32), jnp.zeros(source_count, jnp.float32))
    carry = (zeros, dhidden_TD, dhead)
    carry = one_chunk(0, carry) if chunks == 1 else jax.lax.fori_loop(0, needed, one_chunk, carry)
    sums, dhidden_TD, dhead = carry
    if dhidden_TD is None:
        return sums, None, None
    return sums, dhidden_TD[jnp.argsort(order_T)].reshape(hidden_BLD.shape), dhead


def _cross_entropy(
    logits_CV: jax.Array, targets_C: jax.Array, first_id: jax.Array | int, collectives: Collectives
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-log p(target) [C], the log-sum-exp of the logits [C], and which logit is the target's, bool [C, V].

    Args:
      logits_CV: float32, of this device's part of the vocabulary.
      targets_C: int32 ids.
      first_id: the id of the first logit.
      collectives: combine the parts of the vocabulary.
    """
    top_C = collectives.over_vocabulary(jax.lax.pmax, jnp.max(logits_CV, axis=-1))
    sum_C = collectives.over_vocabulary(jax.lax.psum, jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=-1))
    lse_C = top_C + jnp.log(sum_C)
    # A comparison instead of a gather, because it can be fused.
    hit_CV = jax.lax.broadcasted_iota(jnp.int32, logits_CV.shape, 1) + first_id == targets_C[:, None]
    target_C = collectives.over_vocabulary(jax.lax.psum, jnp.sum(jnp.where(hit_CV, logits_CV, 0.0), axis=-1))
    return lse_C - target_C, lse_C, hit_CV
