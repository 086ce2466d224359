"""Sums over the bits of a state, taken on the devices that hold it, or by the host if it lies in its memory.

Orbax writes checksums for its indexes, not for the numbers themselves: a bit that flips in a file gives another weight
and no error. So a checkpoint has one 32-bit sum per leaf, which is compared after reading. Any single changed bit
changes the sum. The sum is the same on every mesh and costs one pass over the memory of each device. It covers the way
from the devices to the files as well, which `file_checksums` does not see.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.checkpoint.failures import DamagedError

_DIGEST = "digest"
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # unsigned integers by their bytes
_BLOCK = 1 << 20  # elements that are summed at once on a host
_AT_ONCE = 16  # programs that are handed to the devices before one is waited for
# A leaf of at most so many bytes takes the host 4 ms; to compile a program for its shape takes 50.
_SMALL = 16 << 20
_Started = dict[str, jax.Array | int]


def sums(tree: Any) -> dict[str, int]:
    """One sum per leaf in device memory, by path; leaves that are kept in host memory are left out."""
    return fetch(start(tree))


def start(tree: Any) -> _Started:
    """Starts to take `sums`; the leaves may be donated afterwards.

    If a leaf is small and lies on one CPU device, the host waits for it and sums it at once. The others are asked of
    the devices, and few are waited for: with hundreds of programs under way, the CPU devices of several processes would
    wait for one another for ever, because programs that wait for their turn take the threads of those before them.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}
    here = {path: leaf for path, leaf in leaves.items() if leaf.sharding.memory_kind != "pinned_host"}
    started: _Started = {}
    programs = 0
    for path, leaf in here.items():
        if _for_the_host(leaf):
            # `leaf` would keep its numpy view and could no longer be donated; this is another array of its buffer.
            started[path] = host_sum(np.asarray(leaf.addressable_data(0)))
            continue
        started[path] = asked = _sum(leaf)
        programs += 1
        if programs % _AT_ONCE == 0:
            asked.block_until_ready()
    return started


def _for_the_host(leaf: jax.Array) -> bool:
    """Whether the host sums a leaf itself: a small one that lies on one CPU device of this process."""
    if leaf.nbytes > _SMALL or not leaf.is_fully_addressable:
        return False
    return [device.platform for device in leaf.devices()] == ["cpu"]


def fetch(started: _Started) -> dict[str, int]:
    """The sums that `start` has begun, once they are there."""
    return {path: int(value) for path, value in jax.device_get(started).items()}


@jax.jit
def _sum(leaf: jax.Array) -> jax.Array:
    """The sum of (2 i + 1) times the bits of element i of [*shape], modulo 2^32, a uint32 [].

    One reduction takes two sums per row, of which the positions of the rows are factored out: CPUs compute it at the
    speed of their memory, and a product by the positions of all elements at a tenth of it.
    """
    rows = leaf.reshape(1) if leaf.ndim == 0 else leaf
    bits = jax.lax.bitcast_convert_type(rows, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    zero = np.uint32(0)
    odd = 2 * _positions(rows.shape[-1:]) + 1
    weighted, plain = jax.lax.reduce(
        (bits * odd, bits), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (rows.ndim - 1,)
    )
    offsets = _positions(plain.shape) * jnp.uint32(2 * rows.shape[-1] % 2**32)
    return jnp.sum(weighted + plain * offsets, dtype=jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """The position of every element of [*shape] in row-major order, modulo 2^32, uint32."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def host_sum(leaf: np.ndarray) -> int:
    """The sum of a leaf in the memory of a host, equal to the one that devices take."""
    bits = np.ascontiguousarray(leaf).reshape(-1).view(_BITS[leaf.dtype.itemsize])
    odd = np.arange(1, 2 * min(_BLOCK, bits.size), 2, dtype=np.uint32)
    total = 0
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK].astype(np.uint32)
        total += 2 * start * int(block.sum(dtype=np.uint64))
        total += int((block * odd[: block.size]).sum(dtype=np.uint64))
    return total % 2**32


def check(tree: Any, noted: dict[str, int]) -> None:
    """Compares the leaves of `tree` with their sums from when they were written.

    Raises:
      DamagedError: naming the first leaf that differs.
    """
    for path, value in sums(tree).items():
        if noted.get(path, value) != value:
            raise DamagedError(f"{path} is not what was saved")


def with_digest(values: dict[str, Any]) -> dict[str, Any]:
    """The JSON values and, under one more key, their digest."""
    return {**values, _DIGEST: _digest(values)}


def check_digest(values: Any) -> dict[str, Any]:
    """The values without their digest, which is compared; earlier versions wrote none. Raises DamagedError."""
    if not isinstance(values, dict):
        raise DamagedError("the progress is not what was saved")
    rest = {key: value for key, value in values.items() if key != _DIGEST}
    if values.get(_DIGEST, _digest(rest)) != _digest(rest):
        raise DamagedError("the progress is not what was saved")
    return rest


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
