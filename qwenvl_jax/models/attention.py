"""Attention: one function, three implementations.

`xla` is plain einsums with the softmax in float32 and runs everywhere, `cudnn` is NVIDIA's fused kernel, and `splash`
the Pallas kernel for TPU. All three compute the same: scaled dot products, masked by segments and optionally causal.
The released model runs its softmax in bfloat16; here it always accumulates in float32.

Shape suffixes: B rows (or images), L query tokens, T key tokens, N heads, K head size.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from qwenvl_jax.models.parallel import per_row_and_head
from qwenvl_jax.runtime.errors import UserError, nearest

IMPLEMENTATIONS = ("xla", "cudnn", "splash")
NATIVE = {"tpu": "splash", "gpu": "cudnn"}

# The name under which remat policies find the result of the attention, that of the kernels included.
SAVED_NAME = "attention"

# Finite, so that a fully masked row does not give NaN.
MASKED = -0.7 * float(np.finfo(np.float32).max)

# Splash works on tiles of at least 128 lanes.
LANES = 128


def resolve_attention(name: str, backend: str, dtype: str = "bfloat16") -> str:
    """Chooses the implementation.

    Args:
      name: `auto` or one of IMPLEMENTATIONS.
      backend: a JAX backend, `cpu`, `gpu` (`cuda`, `rocm`) or `tpu`.
      dtype: the compute dtype; cuDNN has no float32 kernel, so `auto` means `xla` on a GPU in float32.

    Returns:
      One of IMPLEMENTATIONS.

    Raises:
      UserError: if the backend or the dtype has no such kernel, or the name is unknown.
    """
    family = "gpu" if backend in ("gpu", "cuda", "rocm") else backend
    if name == "auto":
        return "xla" if family == "gpu" and dtype == "float32" else NATIVE.get(family, "xla")
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"config.compute.attention is {name!r}, which is not one of auto, "
            f"{', '.join(IMPLEMENTATIONS)}{nearest(name, IMPLEMENTATIONS)}"
        )
    if name != "xla" and NATIVE.get(family) != name:
        raise UserError(f"attention {name!r} does not run on the backend {backend!r}; use 'auto' or 'xla'")
    if name == "cudnn" and dtype == "float32":
        raise UserError("attention 'cudnn' needs config.compute.compute_dtype='bfloat16'; set it or use 'xla'")
    return name


def attention(
    q_BLNK: jax.Array,
    k_BTNK: jax.Array,
    v_BTNK: jax.Array,
    *,
    segment_ids_BL: jax.Array | None = None,
    kv_segment_ids_BT: jax.Array | None = None,
    causal: bool = False,
    implementation: str = "xla",
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v.

    Args:
      q_BLNK, k_BTNK, v_BTNK: queries, keys and values in the compute dtype.
      segment_ids_BL: int32; a query attends only to keys of its segment. Padding is a segment of its own (0), so that
        no row of the softmax is empty. None: every query attends to every key.
      kv_segment_ids_BT: int32 ids of the keys; those of the queries if None.
      causal: whether the query at index l attends only to keys at indices <= l; needs L == T.
      implementation: one of IMPLEMENTATIONS.
      interpret: run the splash kernel in Pallas' interpreter (tests without a TPU).

    Returns:
      [B, L, N, K] in the dtype of the queries, named `SAVED_NAME` for remat policies.
    """
    if causal and q_BLNK.shape[1] != k_BTNK.shape[1]:
        raise ValueError(f"causal attention needs as many keys as queries, not {q_BLNK.shape} and {k_BTNK.shape}")
    if segment_ids_BL is not None and kv_segment_ids_BT is None:
        kv_segment_ids_BT = segment_ids_BL
    if implementation == "splash":
        return _splash(q_BLNK, k_BTNK, v_BTNK, segment_ids_BL, kv_segment_ids_BT, causal, interpret)
    mask = _mask(segment_ids_BL, kv_segment_ids_BT)
    if implementation == "cudnn":
        if q_BLNK.dtype == jnp.float32:
            raise UserError("attention 'cudnn' needs config.compute.compute_dtype='bfloat16'; set it or use 'xla'")
        out = jax.nn.dot_product_attention(q_BLNK, k_BTNK, v_BTNK, mask=mask, is_causal=causal, implementation="cudnn")
    elif implementation == "xla":
        if causal:
            length = q_BLNK.shape[1]
            below = jnp.tril(jnp.ones((length, length), bool))
            mask = below if mask is None else mask & below
        out = _xla(q_BLNK, k_BTNK, v_BTNK, mask)
    else:
        raise ValueError(f"unknown attention implementation {implementation!r}")
    return checkpoint_name(out, SAVED_NAME)


def decode_attention(
    q_BNK: jax.Array,
    new_key_BNK: jax.Array,
    new_value_BNK: jax.Array,
    key_BNTK: jax.Array,
    value_BNTK: jax.Array,
    valid_BT: jax.Array,
) -> jax.Array:
    """Attention of one new token to the cached tokens and to itself.

    The new key and value stay apart from the cache, so that no layer copies its cache to insert one row.

    Args:
      q_BNK, new_key_BNK, new_value_BNK: of the new token, after rotary.
      key_BNTK, value_BNTK: the cache of this layer.
      valid_BT: bool, the cached tokens to attend to; the new token always attends to itself.

    Returns:
      [B, N, K] in the dtype of the query.
    """
    rows, heads, _ = q_BNK.shape
    arguments = ("BNK", "BNK", "BNK", "BNTK", "BNTK", "BT")
    attend = per_row_and_head(_decode_attention_local, arguments, "BNK", rows, heads)
    return attend(q_BNK, new_key_BNK, new_value_BNK, key_BNTK, value_BNTK, valid_BT)


def attention_after_prefix(
    q_BLNK: jax.Array,
    k_BLNK: jax.Array,
    v_BLNK: jax.Array,
    segment_ids_BL: jax.Array,
    key_NTK: jax.Array,
    value_NTK: jax.Array,
    valid_T: jax.Array,
) -> jax.Array:
    """Causal attention of new tokens to the cached tokens of a prefix that all rows share, and to themselves.

    The prefix has no axis of rows, so it is read once and never repeated. Plain einsums serve all backends, because the
    new tokens are few.

    Args:
      q_BLNK, k_BLNK, v_BLNK: of the new tokens, after rotary.
      segment_ids_BL: int32, 1 for tokens and 0 for padding on the right.
      key_NTK, value_NTK: the cache of the prefix in this layer.
      valid_T: bool, the cached tokens to attend to.

    Returns:
      [B, L, N, K] in the dtype of the queries.
    """
    scale = 1.0 / math.sqrt(q_BLNK.shape[-1])
    length = q_BLNK.shape[1]
    below_LL = jnp.tril(jnp.ones((length, length), bool))
    own_mask = below_LL & (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :])[:, None]
    before_BNLT = jnp.einsum("BLNK,NTK->BNLT", q_BLNK, key_NTK, preferred_element_type=jnp.float32) * scale
    own_BNLL = jnp.einsum("BLNK,BMNK->BNLM", q_BLNK, k_BLNK, preferred_element_type=jnp.float32) * scale
    before_BNLT = jnp.where(valid_T, before_BNLT, MASKED)
    own_BNLL = jnp.where(own_mask, own_BNLL, MASKED)
    weights = jax.nn.softmax(jnp.concatenate([before_BNLT, own_BNLL], axis=-1), axis=-1).astype(v_BLNK.dtype)
    columns = key_NTK.shape[1]
    out_BLNK = jnp.einsum("BNLT,NTK->BLNK", weights[..., :columns], value_NTK)
    return out_BLNK + jnp.einsum("BNLM,BMNK->BLNK", weights[..., columns:], v_BLNK)


def _decode_attention_local(
    q_BNK: jax.Array,
    new_key_BNK: jax.Array,
    new_value_BNK: jax.Array,
    key_BNTK: jax.Array,
    value_BNTK: jax.Array,
    valid_BT: jax.Array,
) -> jax.Array:
    key_BNTK, value_BNTK = _as_stored(key_BNTK), _as_stored(value_BNTK)
    scale = 1.0 / math.sqrt(q_BNK.shape[-1])
    scores_BNT = jnp.einsum("BNK,BNTK->BNT", q_BNK, key_BNTK, preferred_element_type=jnp.float32) * scale
    new_BN1 = jnp.einsum("BNK,BNK->BN", q_BNK, new_key_BNK, preferred_element_type=jnp.float32)[..., None] * scale
    scores_BNT = jnp.where(valid_BT[:, None, :], scores_BNT, MASKED)
    top_BN1 = jnp.maximum(jnp.max(scores_BNT, axis=-1, keepdims=True), new_BN1)
    weights_BNT = jnp.exp(scores_BNT - top_BN1)
    new_weight_BN1 = jnp.exp(new_BN1 - top_BN1)
    total_BN1 = jnp.sum(weights_BNT, axis=-1, keepdims=True) + new_weight_BN1
    dtype = value_BNTK.dtype
    out_BNK = jnp.einsum("BNT,BNTK->BNK", (weights_BNT / total_BN1).astype(dtype), value_BNTK)
    return out_BNK + (new_weight_BN1 / total_BN1).astype(dtype) * new_value_BNK


def _as_stored(cache_BNTK: jax.Array) -> jax.Array:
    """The same keys or values, in the order in which they are stored.

    The compiler for GPUs would rather sum along the last axis, and transpose the whole cache for that. The one for CPUs
    keeps the order unasked, and copies the cache if it is asked.
    """
    return jax.lax.platform_dependent(
        cache_BNTK, cpu=lambda cache: cache, default=lambda cache: with_layout_constraint(cache, Layout((0, 1, 2, 3)))
    )


def _mask(segment_ids_BL: jax.Array | None, kv_segment_ids_BT: jax.Array | None) -> jax.Array | None:
    """[B, 1, L, T] bool, or None if every query attends to every key."""
    if segment_ids_BL is None or kv_segment_ids_BT is None:
        return None
    return (segment_ids_BL[:, :, None] == kv_segment_ids_BT[:, None, :])[:, None]


def _xla(q_BLNK: jax.Array, k_BTNK: jax.Array, v_BTNK: jax.Array, mask: jax.Array | None) -> jax.Array:
    scores_BNLT = jnp.einsum("BLNK,BTNK->BNLT", q_BLNK, k_BTNK, preferred_element_type=jnp.float32)
    scores_BNLT = scores_BNLT * (1.0 / math.sqrt(q_BLNK.shape[-1]))
    if mask is not None:
        scores_BNLT = jnp.where(mask, scores_BNLT, MASKED)
    weights_BNLT = jax.nn.softmax(scores_BNLT, axis=-1).astype(v_BTNK.dtype)
    return jnp.einsum("BNLT,BTNK->BLNK", weights_BNLT, v_BTNK)


def _splash(
    q_BLNK: jax.Array,
    k_BTNK: jax.Array,
    v_BTNK: jax.Array,
    segment_ids_BL: jax.Array | None,
    kv_segment_ids_BT: jax.Array | None,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """Pads lengths to whole lanes, and runs the kernel per device if a mesh is set (see `jax.set_mesh`).

    XLA cannot partition a Pallas kernel, so under a mesh the call is mapped over it: rows over `data` and `fsdp`, heads
    over `tensor`, each if it divides.
    """
    rows, length, heads, size = q_BLNK.shape
    keys = k_BTNK.shape[1]
    if segment_ids_BL is None or kv_segment_ids_BT is None:
        segment_ids_BL = jnp.zeros((rows, length), jnp.int32)
        kv_segment_ids_BT = jnp.zeros((rows, keys), jnp.int32)
    q_BLNK = q_BLNK * jnp.asarray(1.0 / math.sqrt(size), q_BLNK.dtype)  # the kernel itself does not scale
    q_BLNK, k_BTNK, v_BTNK = (_pad(x, 1) for x in (q_BLNK, k_BTNK, v_BTNK))
    # Padding gets an id that no sample has.
    segment_ids_BL, kv_segment_ids_BT = (_pad(x, 1, value=-1) for x in (segment_ids_BL, kv_segment_ids_BT))

    run = functools.partial(_splash_local, causal=causal, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    automatic = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    if any(mesh.shape[name] > 1 for name in automatic):
        row_axes = tuple(name for name in ("data", "fsdp") if name in automatic)
        if rows % math.prod(mesh.shape[name] for name in row_axes):
            row_axes = ()
        head_axis = "tensor" if "tensor" in automatic and heads % mesh.shape["tensor"] == 0 else None
        tokens = PartitionSpec(row_axes, None, head_axis, None)
        ids = PartitionSpec(row_axes, None)
        run = jax.shard_map(run, in_specs=(tokens, tokens, tokens, ids, ids), out_specs=tokens, check_vma=False)
    return run(q_BLNK, k_BTNK, v_BTNK, segment_ids_BL, kv_segment_ids_BT)[:, :length, :, :size]


def _splash_local(
    q_BLNK: jax.Array,
    k_BTNK: jax.Array,
    v_BTNK: jax.Array,
    segment_ids_BL: jax.Array,
    kv_segment_ids_BT: jax.Array,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    # Imported here: only TPU runs need the kernel.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads = q_BLNK.shape[1:3]
    shape = (length, k_BTNK.shape[1])
    one_mask = splash_attention.CausalMask(shape) if causal else splash_attention.FullMask(shape)
    # With a causal mask whole blocks are skipped, so smaller blocks pay. The backward pass writes and sums one gradient
    # of the queries per block of keys.
    sides = (512, 256, LANES) if causal else (1024, 512, 256, LANES)
    block_q, block_kv = (next(side for side in sides if n % side == 0) for n in shape)
    blocks = splash_attention.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        use_fused_bwd_kernel=True,
    )
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([one_mask] * heads),
        block_sizes=blocks,
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )

    def one_row(
        q_LNK: jax.Array, k_TNK: jax.Array, v_TNK: jax.Array, ids_L: jax.Array, kv_ids_T: jax.Array
    ) -> jax.Array:
        q_NLK, k_NTK, v_NTK = (x.transpose(1, 0, 2) for x in (q_LNK, k_TNK, v_TNK))
        return kernel(q_NLK, k_NTK, v_NTK, splash_attention.SegmentIds(ids_L, kv_ids_T)).transpose(1, 0, 2)

    return jax.vmap(one_row)(q_BLNK, k_BTNK, v_BTNK, segment_ids_BL, kv_segment_ids_BT)


def _pad(x: jax.Array, axis: int, value: int = 0) -> jax.Array:
    """Pads the end of `axis` to a multiple of LANES."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % LANES)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x
