"""Arrays that exist only while they are written or read, so that memory holds one array and never a whole model.

tree = {"decoder": {"embedding": Deferred((151936, 4096), np.dtype("bfloat16"), read_embedding)}}
save_frozen(workdir, tree)      # calls read_embedding, writes its array, forgets it
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from qwenvl_jax.checkpoint.checksums import host_sum

# Chunk size on disk, so that a host can read only its part of a leaf.
CHUNK_BYTES = 8 << 20
# Size of one read.
SLAB_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Deferred:
    """An array [*shape] of `dtype` that `load` makes again at every call."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the array once it is loaded."""
        return self.size * self.dtype.itemsize


def host_array(leaf: Any) -> np.ndarray:
    """The values of a leaf on the host: a `Deferred` is loaded, an array is copied from its devices."""
    return leaf.load() if isinstance(leaf, Deferred) else np.asarray(leaf)


class _Handler(ocp.type_handlers.NumpyHandler):
    """Writes `Deferred` leaves one after the other, each before the next is loaded, and notes their sums."""

    def __init__(self, sums: dict[str, int]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._sums = sums

    async def serialize(
        self, values: Sequence[Deferred], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        for value, info, arg in zip(values, infos, args, strict=True):
            leaf = value.load()
            self._sums[info.name.replace(".", "/")] = host_sum(leaf)
            for written in await super().serialize([leaf], [info], [arg]):
                written.result()
        return []


class _SlabReader(ocp.type_handlers.NumpyHandler):
    """Reads a leaf in slabs; in one read TensorStore would keep nearly all chunks in memory as well."""

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[ocp.RestoreArgs] | None = None
    ) -> Sequence[np.ndarray]:
        leaves = []
        for info in infos:
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
            store = await tensorstore.open(tensorstore.Spec(spec), open=True, context=info.ts_context)
            leaf = np.empty(store.shape, store.dtype.numpy_dtype)
            chunk: Any = store.chunk_layout.read_chunk.shape or leaf.shape
            for slab in _slabs(leaf.shape, chunk, leaf.itemsize):
                leaf[slab] = await store[slab].read()
            leaves.append(leaf)
        return leaves


def _slabs(shape: tuple[int, ...], chunk: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Cuts an array along the axis of most chunks, between chunks, into slabs of about SLAB_BYTES."""
    if not shape or 0 in shape:
        yield (slice(None),) * len(shape)
        return
    axis = max(range(len(shape)), key=lambda k: shape[k] / chunk[k])
    row = int(np.prod(shape, dtype=np.int64)) * itemsize // shape[axis]
    step = chunk[axis] * max(1, SLAB_BYTES // (row * chunk[axis]))
    for start in range(0, shape[axis], step):
        yield (slice(None),) * axis + (slice(start, min(start + step, shape[axis])),)


class StoredArrays:
    """The arrays of a checkpoint of any tree, by the names that Orbax gives them, e.g. `0.mu.vit.proj`.

    Args:
      folder: of one item of the checkpoint, absolute.
    """

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder
        self._is_ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(folder)
        self._context = tensorstore.Context()  # one for all arrays, so that the index is read once

    def read(self, name: str) -> np.ndarray:
        """One array, in host memory."""
        info = ocp.type_handlers.ParamInfo(
            name=name, parent_dir=self._folder, is_ocdbt_checkpoint=self._is_ocdbt, ts_context=self._context
        )
        return asyncio.run(_SlabReader().deserialize([info]))[0]


def reader() -> ocp.PyTreeCheckpointHandler:
    """Reads leaves of any checkpoint as NumPy arrays, with little more memory than they take themselves."""
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, _SlabReader()))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def handler(sums: dict[str, int]) -> ocp.PyTreeCheckpointHandler:
    """Writes a tree of `Deferred` leaves in the format of every other checkpoint; `sums` gets their sums by path."""
    registry = ocp.type_handlers.create_type_handler_registry((Deferred, _Handler(sums)))
    # Weights hardly shrink when compressed, and it would take longer than writing them.
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)


def save_args(tree: Any) -> ocp.args.PyTreeSave:
    """The arguments that go with `handler`."""
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    return ocp.args.PyTreeSave(tree, save_args=chunks)
