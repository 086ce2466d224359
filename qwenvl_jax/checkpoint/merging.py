"""Reads a run with low-rank adapters as the model that it makes: with the adapters merged into their kernels."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding

from qwenvl_jax.checkpoint.manager import params_folder, read_host_leaf, stored_leaves
from qwenvl_jax.checkpoint.starting_point import StartingPoint, damage_reported, frozen_damage_reported
from qwenvl_jax.models import lora
from qwenvl_jax.params import LORA_A, LORA_B, LORA_SCALE, Params, flatten, unflatten
from qwenvl_jax.sharding.rules import param_spec

Path = tuple[str, ...]


def adapted_in(start: StartingPoint, abstract: Params) -> list[Path]:
    """The paths of the adapted projections whose kernels are among the leaves of `abstract`."""
    leaves = flatten(abstract)
    targets = map(lora.path_of_target, start.config.lora.adapted)
    return [path for path in targets if (*path, "kernel") in leaves]


def with_adapters(start: StartingPoint, abstract: Params) -> Params:
    """What is read for `abstract`: also the adapters of its kernels, and these in their stored dtypes.

    Args:
      start: the checkpoint.
      abstract: shapes with dtypes and maybe shardings, without adapters.
    """
    adapted = adapted_in(start, abstract)
    if not adapted:
        return abstract
    leaves = flatten(abstract)
    with frozen_damage_reported(start.workdir):
        stored = stored_leaves(params_folder(start.workdir, None))
    with damage_reported(start):
        stored |= stored_leaves(params_folder(start.workdir, start.step))
    for path in adapted:
        sharding = getattr(leaves[(*path, "kernel")], "sharding", None)
        for name in ("kernel", LORA_A, LORA_B, LORA_SCALE):
            leaf = stored[(*path, name)]
            split = sharding
            if isinstance(sharding, NamedSharding):
                spec = param_spec((*path, name), leaf.shape, sharding.mesh)
                split = NamedSharding(sharding.mesh, spec)
            leaves[(*path, name)] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)
    return unflatten(leaves)


def merged(params: Params, abstract: Params) -> Params:
    """The leaves of `abstract`, in its dtypes and shardings, from those that `with_adapters` names."""
    leaves = flatten(params)
    wanted = flatten(abstract)
    for path in [path for path in leaves if path[-1] == LORA_A]:
        kernel = (*path[:-1], "kernel")
        parts = [leaves[(*path[:-1], name)] for name in ("kernel", LORA_A, LORA_B, LORA_SCALE)]
        leaf = wanted[kernel]
        merge = functools.partial(_merge_on_devices, dtype=leaf.dtype)
        with jax.default_matmul_precision("highest"):
            leaves[kernel] = jax.jit(merge, out_shardings=getattr(leaf, "sharding", None))(*parts)
    return unflatten({path: leaf for path, leaf in leaves.items() if path in wanted})


def _merge_on_devices(
    kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
    return lora.merged_kernel(kernel, lora_a, lora_b, scale).astype(dtype)


def read_merged_leaf(start: StartingPoint, path: Path, *, frozen: bool) -> np.ndarray:
    """One leaf in the dtype that `stored_params` says, in this host's memory alone; without the adapters apart."""
    leaf = _read(start, path, frozen=frozen)
    if path[:-1] not in map(lora.path_of_target, start.config.lora.adapted) or path[-1] != "kernel":
        return leaf
    lora_a, lora_b = (_read(start, (*path[:-1], name), frozen=False) for name in (LORA_A, LORA_B))
    scale = _read(start, (*path[:-1], LORA_SCALE), frozen=True)
    return lora.merged_kernel(leaf, lora_a, lora_b, scale)


def _read(start: StartingPoint, path: Path, *, frozen: bool) -> np.ndarray:
    with frozen_damage_reported(start.workdir) if frozen else damage_reported(start):
        return read_host_leaf(params_folder(start.workdir, None if frozen else start.step), path)
