"""XLA options of the training step, per platform. They change the schedule, never the result."""

from __future__ import annotations

from jax.sharding import Mesh

# Without these every collective on a TPU stops the cores until it is done.
ASYNC_COLLECTIVES: dict[str, bool | int | str] = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}


def compiler_options(mesh: Mesh) -> dict[str, bool | int | str]:
    """Options for the devices of a mesh; none where there is nothing to overlap."""
    device = mesh.devices.flat[0]
    return dict(ASYNC_COLLECTIVES) if device.platform == "tpu" and mesh.size > 1 else {}
