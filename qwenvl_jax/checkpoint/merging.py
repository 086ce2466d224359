"""Reads a run with low-rank adapters or quantised kernels as the model that it makes: with whole, merged kernels."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from qwenvl_jax.checkpoint.manager import params_folder, read_host_leaf, stored_leaves
from qwenvl_jax.checkpoint.starting_point import StartingPoint, damage_reported, frozen_damage_reported
from qwenvl_jax.models import lora, quantised
from qwenvl_jax.models.quantised import KERNEL
from qwenvl_jax.params import LORA_A, LORA_B, LORA_SCALE, Params, Path, flatten, parse_path, unflatten
from qwenvl_jax.sharding.rules import param_spec

_ADAPTER = (LORA_A, LORA_B, LORA_SCALE)


def parts_in(start: StartingPoint, stored: Mapping[Path, Any]) -> dict[Path, tuple[str, ...]]:
    """The names of the leaves of which a kernel is made, by its path, if these are more than the kernel itself.

    Args:
      start: the checkpoint.
      stored: its leaves by path, or only the frozen ones and those of adapters.
    """
    parts: dict[Path, tuple[str, ...]] = {}
    for path in dict.fromkeys(path[:-1] for path in stored if path[-1] in quantised.NAMES):
        parts[(*path, KERNEL)] = tuple(name for name in quantised.NAMES if (*path, name) in stored)
    for path in map(parse_path, start.config.lora.adapted):
        kernel = (*path, KERNEL)
        parts[kernel] = (*parts.get(kernel, (KERNEL,)), *_ADAPTER)
    return parts


def with_adapters(start: StartingPoint, abstract: Params) -> Params:
    """What is read for `abstract`: instead of a kernel all its parts, in their stored dtypes.

    Args:
      start: the checkpoint.
      abstract: shapes with dtypes and maybe shardings, with whole kernels and without adapters.
    """
    leaves = flatten(abstract)
    with frozen_damage_reported(start.workdir):
        stored = stored_leaves(params_folder(start.workdir, None))
    if start.config.lora.rank:
        with damage_reported(start):
            stored |= stored_leaves(params_folder(start.workdir, start.step))
    for kernel, names in parts_in(start, stored).items():
        if kernel not in leaves:
            continue
        sharding = getattr(leaves.pop(kernel), "sharding", None)
        for name in names:
            path = (*kernel[:-1], name)
            leaf = stored[path]
            split = sharding
            if isinstance(sharding, NamedSharding):
                split = NamedSharding(sharding.mesh, param_spec(path, leaf.shape, sharding.mesh))
            leaves[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)
    return unflatten(leaves)


def merged(params: Params, abstract: Params) -> Params:
    """The leaves of `abstract`, in its dtypes and shardings, from those that `with_adapters` names."""
    leaves = flatten(params)
    wanted = flatten(abstract)
    # In one order on all processes.
    for path in dict.fromkeys(path[:-1] for path in leaves if path[-1] == LORA_A or path[-1] in quantised.NAMES):
        kernel = (*path, KERNEL)
        names = [name for name in (KERNEL, *quantised.NAMES, *_ADAPTER) if (*path, name) in leaves]
        leaf = wanted[kernel]
        make = functools.partial(_whole_on_devices, dtype=leaf.dtype)
        with jax.default_matmul_precision("highest"):
            whole = jax.jit(make, out_shardings=getattr(leaf, "sharding", None))
            leaves[kernel] = whole({name: leaves[(*path, name)] for name in names})
    return unflatten({path: leaf for path, leaf in leaves.items() if path in wanted})


def _whole_on_devices(parts: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    return _whole(parts).astype(dtype)


def _whole(parts: Mapping[str, Any]) -> Any:
    """The kernel that its parts make, in float32 unless it is its only part; NumPy or JAX, as these are."""
    kernel = parts[KERNEL] if KERNEL in parts else quantised.dequantise(parts)
    return lora.merged_kernel(kernel, *(parts[name] for name in _ADAPTER)) if LORA_A in parts else kernel


def read_merged_leaf(start: StartingPoint, path: Path, *, frozen: bool) -> np.ndarray:
    """One leaf in the dtype that `stored_params` says, in this host's memory alone; without the adapters apart."""
    names: tuple[str, ...] = (KERNEL,)
    if path[-1] == KERNEL:
        with frozen_damage_reported(start.workdir):
            names = parts_in(start, stored_leaves(params_folder(start.workdir, None))).get(path, names)
    if names == (KERNEL,):
        return _read(start, path, frozen=frozen)
    trained = (LORA_A, LORA_B)
    return _whole({name: _read(start, (*path[:-1], name), frozen=name not in trained) for name in names})


def _read(start: StartingPoint, path: Path, *, frozen: bool) -> np.ndarray:
    with frozen_damage_reported(start.workdir) if frozen else damage_reported(start):
        return read_host_leaf(params_folder(start.workdir, None if frozen else start.step), path)
