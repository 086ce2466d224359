"""A batch on the devices: its shapes, how it is split over the mesh, and how a host's part of it gets there.

Shape suffixes: A microbatches, B rows, I images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import BATCH_AXES, AnyMesh, batch_shards


def batch_shardings(mesh: AnyMesh) -> Any:
    """A `Batch` of shardings: rows and images are split over `data` and `fsdp`, the microbatch axis A is not."""
    rows: Any = NamedSharding(mesh, P(None, BATCH_AXES))
    return Batch(*[rows] * len(Batch._fields))


def check_batch(rows: int, mesh: AnyMesh) -> None:
    """Raises UserError if the rows of a microbatch cannot be split over the mesh."""
    shards = batch_shards(mesh)
    if rows % shards:
        raise UserError(
            f"a microbatch of {rows} rows (config.data.rows_per_step / accumulation) cannot be split over "
            f"data x fsdp = {shards} devices; change one of them"
        )


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shapes and shardings of one batch on the devices."""
    data, shards = config.data, batch_shards(mesh)
    rows = (data.accumulation, data.rows_per_microbatch, data.sequence_length)
    images = data.image_budget + data.groups * spare_images(data, shards)
    shapes: dict[str, Any] = dict.fromkeys(Batch._fields, (rows, jnp.int32))
    shapes["loss_mask"] = (rows, jnp.float32)
    shapes["images"] = ((data.accumulation, images, data.image_size, data.image_size, 3), jnp.uint8)
    shardings = batch_shardings(mesh)
    fields: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(*shape, sharding=getattr(shardings, name)) for name, shape in shapes.items()
    }
    return Batch(**fields)


def spare_images(data: DataConfig, shards: int) -> int:
    """Empty images at the end of every image group, so that what whole groups fill ends where a device's part does.

    As many as the devices need that hold whole groups together (`models.parallel.take_features`); none if every
    device holds whole groups.
    """
    return -data.group_images % (shards // math.gcd(data.groups, shards))


def local_streams(data: DataConfig, mesh: Mesh) -> list[int]:
    """The logical streams of the input that hold rows of this process's devices, ascending."""
    shards = batch_shards(mesh)
    places = batch_shardings(mesh)[0].addressable_devices_indices_map((1, shards)).values()
    return streams_of([rows.indices(shards)[0] for _, rows in places], shards, data.streams)


def streams_of(parts: Iterable[int], shards: int, streams: int) -> list[int]:
    """The streams that some of `shards` equal parts of a microbatch need, ascending; they need not be neighbours."""
    found: set[int] = set()
    for part in parts:
        found.update(range(part * streams // shards, -(-(part + 1) * streams // shards)))
    return sorted(found)


def local_slice(start: int, stop: int, part: int, streams: list[int]) -> slice:
    """Where rows (or images) start to stop of a global batch lie among those of some streams of `part` rows each."""
    first = streams.index(start // part) * part + start % part
    return slice(first, first + stop - start)


def put_batch(batch: Batch, data: DataConfig, mesh: Mesh) -> Batch:
    """Copies a numpy batch to the devices, split by rows and images; returns before the copy is done.

    Every image group is padded with empty images to what the mesh splits evenly. Where several processes run, each
    brings the parts of its `local_streams`.
    """
    streams = local_streams(data, mesh)
    spare = spare_images(data, batch_shards(mesh))
    if spare:
        micro, _, *pixels = batch.images.shape
        groups = batch.images.reshape(micro, data.groups * len(streams) // data.streams, -1, *pixels)
        groups = np.pad(groups, ((0, 0), (0, 0), (0, spare), *[(0, 0)] * 3))
        batch = batch._replace(images=groups.reshape(micro, -1, *pixels))
    shardings = batch_shardings(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)

    def put(field: np.ndarray, sharding: NamedSharding) -> jax.Array:
        part = field.shape[1] // len(streams)  # rows or images of a stream
        shape = (field.shape[0], part * data.streams, *field.shape[2:])

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(shape[1])
            return field[:, local_slice(start, stop, part, streams)]

        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, batch, shardings)
