"""What one process holds of a state, as files on its own disk.

A local checkpoint is read by the process that wrote it, into the same shards. So its files are the bytes of the shards
and one index, without what Orbax needs to give any process any part: chunks, a merged index, and a word from all
processes before a checkpoint counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath

from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.runtime import storage

INDEX = "shards.json"
_THREADS = 4  # one does not fill a fast disk
Bounds = tuple[tuple[int, int], ...]  # start and stop of a shard along every axis of its leaf


@dataclasses.dataclass(frozen=True)
class HeldLeaf:
    """What a process holds of a leaf [*shape], in its own memory: every shard once, also if several devices have it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    shards: dict[Bounds, np.ndarray]


def held(tree: Any) -> dict[str, HeldLeaf]:
    """Copies the shards of this process into its memory, by the path of the leaf; the leaves may be donated then."""
    return {name: _held(leaf) for name, leaf in _named(tree).items()}


def held_bytes(tree: Any) -> int:
    """The bytes of `held`, of arrays or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize * len(_bounds_here(leaf))
        for leaf in jax.tree.leaves(tree)
    )


def write(folder: epath.Path, leaves: Mapping[str, HeldLeaf]) -> None:
    """Writes one file per leaf, its shards one after the other, and the index."""
    storage.make_folder(folder)
    files = {name: f"{number}.bin" for number, name in enumerate(leaves)}

    def write_leaf(name: str) -> None:
        with (folder / files[name]).open("wb") as file:
            for shard in leaves[name].shards.values():
                file.write(shard.reshape(-1).view(np.uint8).data)

    with ThreadPoolExecutor(_THREADS, "local checkpoint") as threads:
        list(threads.map(write_leaf, leaves))
    index = {
        name: {"file": files[name], "shape": leaf.shape, "dtype": leaf.dtype.name, "shards": list(leaf.shards)}
        for name, leaf in leaves.items()
    }
    storage.write_bytes(folder / INDEX, json.dumps(index).encode())


def read(folder: epath.Path, abstract: Any) -> Any:
    """The tree whose shards `write` has written.

    Args:
      folder: of the files.
      abstract: shapes, dtypes and shardings of the whole leaves.

    Raises:
      DamagedError: if the files hold other shards than those that this process needs.
    """
    index = json.loads(storage.read_bytes(folder / INDEX))
    leaves = {}
    for name, leaf in _named(abstract).items():
        noted = index.get(name)
        if noted is None or tuple(noted["shape"]) != leaf.shape or np.dtype(noted["dtype"]) != leaf.dtype:
            raise DamagedError(f"it holds no {name} of shape {list(leaf.shape)} and type {leaf.dtype.name}")
        bounds = [tuple(map(tuple, shard)) for shard in noted["shards"]]
        if not _bounds_here(leaf) <= set(bounds):
            raise DamagedError("it was written on another mesh")
        leaves[name] = _placed(
            leaf, dict(zip(bounds, _shards(folder / noted["file"], bounds, leaf.dtype), strict=True))
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves.values())


def _held(leaf: jax.Array) -> HeldLeaf:
    shards = {_bounds(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
    for data in shards.values():
        data.copy_to_host_async()
    # On a CPU `np.asarray` would be the memory of the device itself, which the next step writes over.
    return HeldLeaf(leaf.shape, leaf.dtype, {bounds: np.array(data) for bounds, data in shards.items()})


def _placed(leaf: Any, shards: Mapping[Bounds, np.ndarray]) -> jax.Array:
    def shard_at(index: Any) -> np.ndarray:
        return shards[_bounds(index, leaf.shape)]

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard_at)


def _shards(file: epath.Path, bounds: list[Bounds], dtype: np.dtype) -> list[np.ndarray]:
    payload = np.fromfile(file, np.uint8)
    shapes = [tuple(stop - start for start, stop in shard) for shard in bounds]
    ends = np.cumsum([math.prod(shape) * dtype.itemsize for shape in shapes])
    if payload.size != ends[-1]:
        raise DamagedError(f"{file.name} has {payload.size} bytes instead of {ends[-1]}")
    pieces = np.split(payload, ends[:-1])
    return [piece.view(dtype).reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _bounds_here(leaf: Any) -> set[Bounds]:
    """The shards of a leaf that the devices of this process hold."""
    return {_bounds(index, leaf.shape) for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values()}


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
