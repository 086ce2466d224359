"""A batch on the devices: its shapes, how it is split over the mesh, and how a host copies its part of it.

Shape suffixes: A microbatches, B rows, I images, H/W pixels, C channels, P parts of a batch, D devices of a part.
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
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import BATCH_AXES, AnyMesh, batch_shards


def batch_shardings(mesh: AnyMesh) -> Any:
    """A `Batch` of shardings: rows and images are split over `data` and `fsdp`, the microbatch axis A is not split."""
    split: Any = NamedSharding(mesh, P(None, BATCH_AXES))
    return Batch(*[split] * len(Batch._fields))


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
    data = config.data
    rows = (data.accumulation, data.rows_per_microbatch, data.sequence_length)
    images = data.image_budget + data.groups * spare_images(data, batch_shards(mesh))
    pixels = (data.accumulation, images, data.image_size, data.image_size, 3)
    shardings = batch_shardings(mesh)
    fields: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(rows, jnp.int32, sharding=getattr(shardings, name)) for name in Batch._fields
    }
    fields["loss_mask"] = jax.ShapeDtypeStruct(rows, jnp.float32, sharding=shardings.loss_mask)
    fields["images"] = jax.ShapeDtypeStruct(pixels, jnp.uint8, sharding=shardings.images)
    return Batch(**fields)


def spare_images(data: DataConfig, shards: int) -> int:
    """Number of empty images appended to every image group, so that its images divide evenly among devices.

    The images of whole groups must end where the part of a device ends (see `models.parallel.take_features`).
    Example: 8 groups of 4 images on 12 devices. The fewest devices that hold whole groups together are 12 / gcd(8, 12)
    = 3, with 2 groups. The images of a group must be a multiple of 3, so 2 empty ones are appended to its 4. If every
    device holds whole groups, there are none.

    Args:
      data: groups and images per group.
      shards: devices over which the images are split, `data` x `fsdp`.
    """
    sharing = shards // math.gcd(data.groups, shards)
    return -data.group_images % sharing


def local_streams(data: DataConfig, mesh: Mesh) -> list[int]:
    """The logical streams that contain the rows of this process's devices, ascending."""
    shards = batch_shards(mesh)
    indices = batch_shardings(mesh)[0].addressable_devices_indices_map((1, shards)).values()
    return streams_of([rows.indices(shards)[0] for _, rows in indices], shards, data.streams)


def check_streams(data: DataConfig, mesh: Mesh, *, continued: bool = False) -> None:
    """Refuses a stream that several processes would read, decode and pack, if more streams avoid it.

    Only processes that hold the same rows, because `tensor` spans them, must build the same streams.

    Args:
      data: the config.
      mesh: of the devices of all processes.
      continued: whether the run has begun. Its number of streams cannot change any more, so a line warns instead.

    Raises:
      UserError: if a stream is shared needlessly and the run has not begun.
    """
    shards = batch_shards(mesh)
    processes = np.array([device.process_index for device in mesh.devices.flat]).reshape(shards, -1)
    least = _most_processes(processes, shards)  # those that hold the same part
    most = _most_processes(processes, data.streams)
    if most == least:
        return
    sentence = (
        f"{len(np.unique(processes))} processes share {data.streams} logical stream{'s' * (data.streams > 1)}, and "
        f"{most} of them would read, decode and pack the same one"
    )
    if continued:
        log.line(f"warning: {sentence}; a run keeps its streams, so start the next one with more (config.data.streams)")
        return
    rows = data.rows_per_microbatch
    divisors = [count for count in range(1, rows + 1) if rows % count == 0]
    enough = next(count for count in divisors if _most_processes(processes, count) == least)
    groups = next(count for count in divisors if count >= data.groups and count % enough == 0)
    change = f"config.data.streams={enough}"
    if groups != data.groups:
        change += f" and config.data.image_groups={groups}"
    raise UserError(f"{sentence}; set {change}")


def _most_processes(processes_PD: np.ndarray, streams: int) -> int:
    """The largest number of processes that need one stream.

    Args:
      processes_PD: the processes of the D devices that hold each of the P parts of a batch.
      streams: number of streams.
    """
    users: dict[int, set[int]] = {}
    for part, processes_D in enumerate(processes_PD):
        for stream in streams_of([part], len(processes_PD), streams):
            users.setdefault(stream, set()).update(processes_D.tolist())
    return max(map(len, users.values()))


def streams_of(parts: Iterable[int], shards: int, streams: int) -> list[int]:
    """The streams whose rows some devices hold, ascending; they need not be consecutive.

    A microbatch is the rows of all streams one after the other, cut into `shards` equal parts. Example: 4 streams on 6
    devices. Device 1 holds the rows from 1/6 to 2/6, which are in the streams 0 (up to 1/4) and 1.

    Args:
      parts: indices of the devices' parts, 0 to `shards` - 1.
      shards: number of parts.
      streams: number of streams, each with an equal share of the rows.
    """
    needed: set[int] = set()
    for part in parts:
        first = part * streams // shards
        stop = -(-(part + 1) * streams // shards)  # rounded up
        needed.update(range(first, stop))
    return sorted(needed)


def local_slice(start: int, stop: int, part: int, streams: list[int]) -> slice:
    """The rows (or images) `start` to `stop` of the whole batch, as indices into the rows that a process holds.

    Args:
      start, stop: indices in the whole batch.
      part: rows of one stream.
      streams: the streams whose rows the process holds, one after the other, from `local_streams`.
    """
    first = streams.index(start // part) * part + start % part
    return slice(first, first + stop - start)


def put_batch(batch: Batch, data: DataConfig, mesh: Mesh) -> Batch:
    """Copies a numpy batch to the devices, split by rows and images; returns before the copy is done.

    Every image group is padded with empty images if the mesh cannot split it evenly. If there are several processes,
    each passes the rows and images of its `local_streams`.
    """
    streams = local_streams(data, mesh)
    spare = spare_images(data, batch_shards(mesh))
    if spare:
        groups = data.groups * len(streams) // data.streams
        batch = batch._replace(images=_pad_groups(batch.images, groups, spare))
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


def _pad_groups(images_AIHWC: np.ndarray, groups: int, spare: int) -> np.ndarray:
    """Appends `spare` empty images to every one of the `groups` image groups of each microbatch."""
    microbatches, _, *pixels = images_AIHWC.shape
    grouped = images_AIHWC.reshape(microbatches, groups, -1, *pixels)
    grouped = np.pad(grouped, ((0, 0), (0, 0), (0, spare), *[(0, 0)] * 3))
    return grouped.reshape(microbatches, -1, *pixels)
