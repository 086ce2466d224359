"""Frozen kernels of 4 or 8 bits: how they are stored, and how a layer reads them (Q-LoRA, arXiv:2305.14314).

Instead of its leaf `kernel` a projection has one of two groups of leaves, from which `layers.Projection` sees that it
is quantised. With a kernel of the axes [*inputs, *outputs], of which F is the last:

  int8   `kernel_int8` int8 [*inputs, *outputs] and `kernel_scale` float32 [1.., *outputs]: the value is their product,
         and 127 times the scale is the largest magnitude of an output channel.
  nf4    `kernel_nf4` uint8 [.., F / 2], two codes of 4 bits in a byte, the first in the higher bits. A code names one
         of the 16 `NF4_VALUES`, which is multiplied by the largest magnitude of its block of 64 along the last axis.
         That number is quantised too: `kernel_absmax` int8 [.., F / 64] times `kernel_absmax_scale` plus
         `kernel_absmax_mean`, float32 of the shape [*inputs, 1..], shared by all blocks of one input.

In blocks of the towers all of them have a leading layer axis. Blocks are shorter if 64 does not divide the last axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from qwenvl_jax.config import LORA_TARGETS, QUANTISED_TARGETS
from qwenvl_jax.params import Params, Path, flatten, is_stacked, parse_path, unflatten
from qwenvl_jax.sharding.rules import QUANTISED_LEAVES, param_spec

Leaves = Mapping[str, Any]

KERNEL = "kernel"
INT8, INT8_SCALE = QUANTISED_LEAVES["int8"]
NF4, ABSMAX, ABSMAX_SCALE, ABSMAX_MEAN = QUANTISED_LEAVES["nf4"]
NAMES = (*QUANTISED_LEAVES["int8"], *QUANTISED_LEAVES["nf4"])

BLOCK = 64

# Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (appendix E of the paper, bitsandbytes).
NF4_VALUES = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
_MIDDLES = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2


def quantise(kernel: jax.Array, inputs: int, scheme: str) -> dict[str, jax.Array]:
    """The leaves of one kernel without a layer axis.

    Args:
      kernel: [*inputs, *outputs], any float dtype.
      inputs: how many axes are inputs.
      scheme: "int8" or "nf4".
    """
    wide = kernel.astype(jnp.float32)
    if scheme == "int8":
        scale = jnp.max(jnp.abs(wide), axis=tuple(range(inputs)), keepdims=True) / 127
        codes = jnp.round(wide / jnp.where(scale > 0, scale, 1))
        return {INT8: codes.astype(jnp.int8), INT8_SCALE: scale}
    blocks = wide.reshape(*wide.shape[:-1], -1, _block(wide.shape[-1]))
    absmax = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / jnp.where(absmax > 0, absmax, 1)[..., None]
    codes = sum((unit > middle).astype(jnp.uint8) for middle in _MIDDLES)
    pairs = codes.reshape(*wide.shape[:-1], -1, 2)
    of_input = tuple(range(inputs, absmax.ndim))
    mean = jnp.mean(absmax, axis=of_input, keepdims=True)
    scale = jnp.max(jnp.abs(absmax - mean), axis=of_input, keepdims=True) / 127
    return {
        NF4: (pairs[..., 0] << 4) | pairs[..., 1],
        ABSMAX: jnp.round((absmax - mean) / jnp.where(scale > 0, scale, 1)).astype(jnp.int8),
        ABSMAX_SCALE: scale,
        ABSMAX_MEAN: mean,
    }


def dequantise(leaves: Leaves) -> Any:
    """The kernel in float32 of the leaves of `quantise`, stacked or not; NumPy or JAX, as the leaves are."""
    if INT8 in leaves:
        return leaves[INT8].astype("float32") * leaves[INT8_SCALE]
    packed = leaves[NF4]
    library: Any = np if isinstance(packed, np.ndarray) else jnp
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    codes = library.stack([packed >> 4, packed & 15], axis=-1)
    absmax = leaves[ABSMAX].astype("float32") * leaves[ABSMAX_SCALE] + leaves[ABSMAX_MEAN]
    values = library.take(library.asarray(NF4_VALUES), codes).reshape(*absmax.shape, -1)
    return (values * absmax[..., None]).reshape(shape)


def _block(size: int) -> int:
    return math.gcd(BLOCK, size)


def _quantise_stacked(kernel: jax.Array, inputs: int, scheme: str, *, stacked: bool) -> dict[str, jax.Array]:
    """`quantise`, one layer after the other, so that only one is there in float32."""
    one = functools.partial(quantise, inputs=inputs, scheme=scheme)
    return jax.lax.map(one, kernel) if stacked else one(kernel)


def abstract(frozen: Params, scheme: str) -> Params:
    """The frozen tree of shapes of a run, with quantised kernels.

    Args:
      frozen: of `params.abstract_split`.
      scheme: `config.compute.frozen_kernels`.
    """
    leaves = flatten(frozen)
    for target in QUANTISED_TARGETS if scheme != "plain" else ():
        path = parse_path(target)
        kernel = leaves.pop((*path, KERNEL), None)
        if kernel is not None:
            stored = jax.eval_shape(_quantiser(path, scheme), kernel)
            leaves |= {(*path, name): leaf for name, leaf in stored.items()}
    return unflatten(leaves)


def kernels(tree: Params) -> dict[Path, dict[str, Any]]:
    """The leaves of every quantised projection, by the path of the kernel that they stand for."""
    groups: dict[Path, dict[str, Any]] = {}
    for path, leaf in flatten(tree).items():
        if path[-1] in NAMES:
            groups.setdefault((*path[:-1], KERNEL), {})[path[-1]] = leaf
    return groups


def plain(tree: Params, dtype: str = "float32") -> Params:
    """A tree of shapes with the kernels that its quantised leaves stand for instead of these, in `dtype`."""
    leaves = {path: leaf for path, leaf in flatten(tree).items() if path[-1] not in NAMES}
    for path, stored in kernels(tree).items():
        shape = shape_of(stored)
        sharding = getattr(next(iter(stored.values())), "sharding", None)
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, param_spec(path, shape, sharding.mesh))
        leaves[path] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
    return unflatten(leaves)


def shape_of(stored: Leaves) -> tuple[int, ...]:
    """The shape of the kernel that such leaves stand for."""
    if INT8 in stored:
        return tuple(stored[INT8].shape)
    return (*stored[NF4].shape[:-1], 2 * stored[NF4].shape[-1])


def quantise_like(path: Path, kernel: Any, stored: Leaves) -> dict[Path, jax.Array]:
    """The leaves of a kernel by their paths.

    Args:
      path: of the kernel.
      kernel: stacked if `path` is of a block.
      stored: the shapes of the leaves by name, which say scheme and shardings.
    """
    scheme = "int8" if INT8 in stored else "nf4"
    shardings = {name: getattr(leaf, "sharding", None) for name, leaf in stored.items()}
    made = jax.jit(_quantiser(path[:-1], scheme), out_shardings=shardings)(kernel)
    return {(*path[:-1], name): leaf for name, leaf in made.items()}


def _quantiser(path: Path, scheme: str) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """The function that quantises the kernel of the projection at `path`."""
    inputs = LORA_TARGETS["/".join(path)]
    return functools.partial(_quantise_stacked, inputs=inputs, scheme=scheme, stacked=is_stacked(path))
