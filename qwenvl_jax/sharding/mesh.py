"""The device mesh: axes `data`, `fsdp`, `tensor`, over one slice (ICI) or several (DCN).

`data` copies the parameters and splits the batch, `fsdp` splits both, `tensor` splits heads and hidden widths.
Several slices multiply the `data` axis, because only the gradient sum of `data` crosses the slow network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh

from qwenvl_jax.config import MeshConfig
from qwenvl_jax.runtime.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the axes that split the rows and the images of a batch

AnyMesh = Mesh | AbstractMesh  # of devices, or of sizes alone, which are enough for partitions


def config_of(text: str) -> MeshConfig:
    """A mesh as commands without a config name it, `fsdp=4,tensor=2`; axes that are not named have one device.

    Raises:
      UserError: for another form.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or not size.removeprefix("-").isdecimal():
            raise UserError(f"the mesh {text!r} must be such as data=2,fsdp=2,tensor=2; -1 takes all that is left")
        sizes[name] = int(size)
    mesh = MeshConfig(**sizes, slices=1, max_replicated_bytes=0)
    mesh.check("--mesh")
    return mesh


def mesh_shape(config: MeshConfig, device_count: int) -> tuple[int, int, int]:
    """The sizes of `data`, `fsdp`, `tensor` within one slice, with -1 filled in.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    if device_count % config.slices:
        raise UserError(f"config.mesh.slices {config.slices} does not divide the {device_count} devices")
    per_slice = device_count // config.slices
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and per_slice % fixed == 0:
        sizes[sizes.index(-1)] = per_slice // fixed
    if math.prod(sizes) != per_slice:
        open_axis = -1 in (config.data, config.fsdp, config.tensor)
        raise UserError(
            f"config.mesh (data {config.data}, fsdp {config.fsdp}, tensor {config.tensor}) needs "
            f"{'a multiple of ' if open_axis else ''}{fixed} devices per slice, but there are {per_slice}; "
            + ("lower those that are not -1" if open_axis else "set one of them to -1 to take what is left")
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run.

    Args:
      config: the sizes; `data` of the result is `slices` times that of the config.
      devices: by default all devices of this run; those of a topology for compiling ahead of time.

    Raises:
      UserError: if the sizes do not fit the devices, or the slices of TPUs.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = mesh_shape(config, len(devices))
    shape = (config.slices * data, fsdp, tensor)
    if devices[0].platform != "tpu":  # no torus to follow: neighbours in the list share a host
        return Mesh(np.asarray(devices, dtype=object).reshape(shape), AXES)
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if slices != config.slices:
        raise UserError(
            f"config.mesh.slices is {config.slices}, but the {len(devices)} chips lie in {slices} "
            f"slice{'s' * (slices > 1)}; set it to {slices}"
        )
    check_torus(config, len(devices))
    try:
        if slices == 1:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(
                (data, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
            )
    except (AssertionError, NotImplementedError, ValueError) as error:  # JAX raises any of these
        raise UserError(
            f"JAX cannot lay the mesh (data {data}, fsdp {fsdp}, tensor {tensor}) on the torus of a slice of "
            f"{len(devices) // slices} chips: {str(error).splitlines()[0]}; choose other sizes"
        ) from error
    return Mesh(grid, AXES)


def check_torus(config: MeshConfig, device_count: int) -> None:
    """Refuses sums over an odd number of chips within a slice, which the TPU compiler (libtpu 0.0.42) refuses.

    Raises:
      UserError: if the sizes need such a sum, or do not fit the number of devices.
    """
    data, fsdp, tensor = mesh_shape(config, device_count)
    if data > 1 and data % 2:
        raise UserError(
            f"config.mesh makes data {data} in every slice, and the TPU compiler sums over no odd number of chips; "
            f"make it even by a smaller config.mesh.fsdp ({fsdp}) or config.mesh.tensor ({tensor})"
        )


def abstract_mesh(config: MeshConfig, device_count: int) -> AbstractMesh:
    """The mesh of `make_mesh` as sizes alone, for devices that are not here.

    Raises:
      UserError: if the sizes do not fit the devices.
    """
    data, fsdp, tensor = mesh_shape(config, device_count)
    return AbstractMesh((config.slices * data, fsdp, tensor), AXES)


def batch_shards(mesh: AnyMesh) -> int:
    """The number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_memory(kind: str, mesh: Mesh) -> None:
    """Raises UserError if the devices of a mesh cannot address a kind of memory (`config.optimizer.moments_memory`)."""
    device = mesh.local_devices[0]
    known = [memory.kind for memory in device.addressable_memories()]
    if kind not in known:
        raise UserError(
            f"config.optimizer.moments_memory is {kind!r}, but the backend {device.platform!r} has only "
            f"{', '.join(known)}; set it to 'device'"
        )
