"""Layers shared by the towers: projections, norms, position tables, remat and scan.

Parameters are stored in float32 (or bfloat16 if frozen) and cast to the compute dtype when they are used. The axes of
a kernel are its inputs, then its outputs.

Shape suffixes: D width in, F width out or hidden, G side of a grid, P patches (G^2), S stacked layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from qwenvl_jax.models import quantised
from qwenvl_jax.models.attention import SAVED_NAME
from qwenvl_jax.models.parallel import over_rows, product, splits_kernels
from qwenvl_jax.params import LORA_A, LORA_B, LORA_DROPOUT, LORA_SCALE
from qwenvl_jax.sharding.rules import kernel_axes

Initializer = Callable[..., jax.Array]

# Results of the large matrix products. The last one of a block is missing: its backward pass does not need it.
MATMUL_NAMES = ("qkv", SAVED_NAME, "attention_out", "mlp_up", "mlp_gate")


class Projection(nn.Module):
    """A matrix product over the last axes of the input, `inputs`.

    Attributes:
      inputs: sizes of the axes summed over, the kernel's first axes.
      outputs: sizes of the result's axes after the batch axes.
      dtype: compute dtype.
      kernel_init: initialiser of the kernel, called with its full shape.
      use_bias: whether to add a bias of shape `outputs`, initialised to zero.
      unstack: whether the result is a tuple over the first axis of `outputs`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: Any
    kernel_init: Initializer
    use_bias: bool = True
    unstack: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Maps [..., *inputs] to [..., *outputs] in the compute dtype."""
        # One token per row: slices of the kernel would cost more than slices of the result.
        late = self.unstack and x.shape[1] == 1
        y = self._product(x.astype(self.dtype), self.unstack and not late)
        if late:
            y = jnp.unstack(y, axis=-len(self.outputs))
        if self.has_variable("params", LORA_A):  # never when parameters are initialised: see `models.lora`
            update = self._low_rank(x.astype(self.dtype))
            y = tuple(map(jnp.add, y, update)) if self.unstack else y + update
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.outputs, jnp.float32).astype(self.dtype)
            y = tuple(part + bias[i] for i, part in enumerate(y)) if self.unstack else y + bias
        return y

    def _product(self, x: jax.Array, unstack: bool) -> Any:
        """The product with the kernel alone, which may be quantised: see `models.quantised`."""
        axes = kernel_axes((*self.path, quantised.KERNEL))
        stored: quantised.Leaves = {
            name: self.get_variable("params", name) for name in quantised.NAMES if self.has_variable("params", name)
        }
        if not stored:
            kernel = self.param(quantised.KERNEL, self.kernel_init, (*self.inputs, *self.outputs), jnp.float32)
            return product(x, kernel.astype(self.dtype), len(self.inputs), axes, unstack)

        @jax.checkpoint  # the backward pass keeps the codes, not the kernel
        def multiply(x: jax.Array, stored: quantised.Leaves) -> Any:
            kernel = quantised.dequantise(stored).astype(self.dtype)
            return product(x, kernel, len(self.inputs), axes, unstack)

        return multiply(x, stored)

    def _low_rank(self, x: jax.Array) -> Any:
        """What the adapter adds to the product: scale * B A dropout(x), like the result of `__call__`."""
        lora_a: jax.Array = self.get_variable("params", LORA_A)
        lora_b: jax.Array = self.get_variable("params", LORA_B)
        scale: jax.Array = self.get_variable("params", LORA_SCALE)
        if self.has_variable("params", LORA_DROPOUT):
            x = dropout(x, **self.get_variable("params", LORA_DROPOUT))
        low = product(x, lora_a.astype(self.dtype), len(self.inputs), kernel_axes((*self.path, LORA_A)))
        low *= scale.astype(self.dtype)
        return product(low, lora_b.astype(self.dtype), 1, kernel_axes((*self.path, LORA_B)), self.unstack)


@jax.custom_vjp
def dropout(x: jax.Array, keys: jax.Array, keep: jax.Array) -> jax.Array:
    """Sets values to 0 and divides the others by the share that stays, so that the mean stays.

    A hash of the row's key and the value's number decides, which is cheaper than `jax.random.bits`. The backward pass
    decides anew, so that no mask is stored.

    Args:
      x: [B, ...].
      keys: uint32 [B, 2], data of a random key for every row.
      keep: float32 scalar, the share of values that stay, above 0.
    """
    rest = x.shape[1:]
    of_rows = (-1, *(1 for _ in rest))
    # Values are counted from the key in odd strides: rows go through all numbers, each in an order of its own.
    first, stride = keys[:, 0].reshape(of_rows), (keys[:, 1] | 1).reshape(of_rows)
    numbers = jnp.arange(math.prod(rest), dtype=jnp.uint32).reshape(1, *rest)
    draws = _hashed(numbers * stride + first) >> 8
    kept_of_all = jnp.round(keep * 2**24)
    share = (kept_of_all / 2**24).astype(x.dtype)
    return jnp.where(over_rows(draws < kept_of_all.astype(jnp.uint32)), x / share, 0)


def _dropout_forward(x: jax.Array, keys: jax.Array, keep: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dropout(x, keys, keep), (keys, keep)


def _dropout_backward(drawn_from: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    return dropout(gradient, *drawn_from), None, None


dropout.defvjp(_dropout_forward, _dropout_backward)


def _hashed(numbers: jax.Array) -> jax.Array:
    """A bijection of uint32 in whose results every bit depends on every bit of the argument (lowbias32)."""
    numbers ^= numbers >> 16
    numbers *= jnp.uint32(0x21F0AAAD)
    numbers ^= numbers >> 15
    numbers *= jnp.uint32(0x735A2D97)
    return numbers ^ (numbers >> 15)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, in float32 throughout; the result has the input's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation: in float32, cast back to the input's dtype, then times the weight.

    The order matters in bfloat16 and is that of the released modeling_qwen.py.
    """

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., D]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * scale.astype(x.dtype)


@functools.cache
def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """[target, source] float32: 1-D bicubic interpolation as torch's `F.interpolate` does it.

    Cubic convolution with A = -0.75, half-pixel centres, edge samples repeated, no antialiasing. (`jax.image.resize`
    differs: it uses A = -0.5 and renormalises at the border.)
    """
    a = -0.75
    matrix = np.zeros((target, source), np.float64)
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        first = math.floor(centre) - 1
        for column in range(first, first + 4):
            x = abs(centre - column)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            matrix[row, min(max(column, 0), source - 1)] += near if x <= 1 else far
    return matrix.astype(np.float32)


def resize_positions(table_PD: jax.Array, patches: int) -> jax.Array:
    """Interpolates a table of grid positions to another square grid (released visual.py `get_abs_pos`).

    Args:
      table_PD: [G^2, D], row-major over the grid, any float dtype.
      patches: number of positions wanted, a square number.

    Returns:
      [patches, D] float32; the table itself if the grids are equal. Differentiable with respect to the table.
    """
    source, target = math.isqrt(table_PD.shape[0]), math.isqrt(patches)
    if source**2 != table_PD.shape[0] or target**2 != patches:
        raise ValueError(f"position grids must be square, not {table_PD.shape[0]} and {patches} positions")
    table_PD = table_PD.astype(jnp.float32)
    if source == target:
        return table_PD
    matrix = bicubic_matrix(source, target)
    grid = table_PD.reshape(source, source, -1)
    # Without this precision an accelerator would round the interpolation weights to bfloat16.
    exact = jax.lax.Precision.HIGHEST
    grid = jnp.einsum("ij,jkd->ikd", matrix, grid, precision=exact)
    return jnp.einsum("lk,ikd->ild", matrix, grid, precision=exact).reshape(patches, -1)


def sincos_positions(grid: int, width: int) -> np.ndarray:
    """[grid^2, width] float32 sin-cos table of the resampler (released visual.py).

    The first half of the width encodes the COLUMN, the second the row. Each half is a block of sines followed by a
    block of cosines of position * 10000^(-k / (width / 4)). Row-major over the grid.
    """
    quarter = width // 4
    omega = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float32) / quarter)
    angles = np.arange(grid, dtype=np.float32)[:, None] * omega[None, :]
    axis_GD = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns = np.tile(axis_GD, (grid, 1))
    rows = np.repeat(axis_GD, grid, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)


def named(x: jax.Array, name: str) -> jax.Array:
    """Marks a result that the remat policies of `scan_blocks` may save."""
    return checkpoint_name(x, name)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """A remat policy: saves the results of cuDNN's attention, which cannot be given a name."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _is_not_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """A remat policy: saves everything except the kernels that `models.parallel.gather` joins."""
    if primitive.name.startswith("custom_vjp_call"):  # `gather` defines its own gradient
        return "all_gather" not in [eqn.primitive.name for eqn in params["call_jaxpr"].eqns]
    return primitive.name != "all_gather"


def _remat_policy(remat: str) -> Callable[..., bool] | None:
    """What the backward pass of a block finds saved, see `scan_blocks`; None if nothing is computed again."""
    policies = jax.checkpoint_policies
    if remat == "none":
        # Gather the kernels again in the backward pass. If the gathered ones were saved, every device would hold all
        # layers unsharded.
        return _is_not_gathered if splits_kernels() else None
    saved = {"matmuls_saved": MATMUL_NAMES, "attention_saved": (SAVED_NAME,), "full": ()}[remat]
    policy = policies.save_only_these_names(*saved)
    return policies.save_from_both_policies(policy, _is_cudnn_attention) if saved else policy


def recomputed(block: Callable[..., Any], remat: str, *, static_argnums: int) -> Callable[..., Any]:
    """A block as a function, whose backward pass computes again what `scan_blocks` would compute again."""
    policy = _remat_policy(remat)
    if policy is None:
        return block
    return jax.checkpoint(block, policy=policy, prevent_cse=False, static_argnums=static_argnums)


def scan_blocks(block: type[nn.Module], layers: int, remat: str, in_axes: Any, unroll: bool = False) -> Any:
    """Stacks `layers` copies of a block, with parameters on a leading layer axis.

    Args:
      block: a module whose call maps (carry, *inputs) to (carry, output).
      layers: S.
      remat: what is saved per block for its backward pass, in addition to its input. `none` saves everything and
        recomputes nothing, `matmuls_saved` saves the results of the matrix products, `attention_saved` the result of
        the attention, `full` nothing.
      in_axes: for every input after the carry `nn.broadcast` or the layer axis 0.
      unroll: whether to unroll the loop over layers; parameters stay stacked.
    """
    policy = _remat_policy(remat)
    if policy is not None:
        # Common subexpressions cannot be merged across the iterations of a scan, so no barrier against that is needed.
        block = nn.remat(block, policy=policy, prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=layers,
        unroll=layers if unroll else 1,
    )
