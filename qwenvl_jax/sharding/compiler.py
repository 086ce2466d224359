"""XLA options of the training step, per platform. They change the schedule, never the result."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import Mesh

# Without these every collective on a TPU stops the cores until it is done.
ASYNC_COLLECTIVES: dict[str, bool | int | str] = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}

# Collectives beside Pallas kernels as well. Where two cores share the memory of a chip (v4, v5p) the compiler aborts in
# some programs; there a recipe may choose it.
BESIDE_KERNELS = {"xla_tpu_enable_async_collective_fusion_with_mosaic_custom_call": True}
ONE_CORE = ("TPU v5 lite", "TPU v6 lite")

# The SparseCores of a chip exchange data while its TensorCores compute: the only way to hide a reduce-scatter. What
# they do cannot be part of a fusion.
SPARSE_CORE_COLLECTIVES: dict[str, bool | int | str] = {
    **{
        f"xla_tpu_enable_async_collective_fusion_fuse_{kind}": False
        for kind in ("all_gather", "all_reduce", "reduce_scatter")
    },
    **{
        f"xla_tpu_enable_sparse_core_collective_offload_{kind}": True
        for kind in ("all_gather", "2d_all_gather", "reduce_scatter", "nd_reduce_scatter", "all_reduce")
    },
    "xla_tpu_use_tc_device_shape_on_sc": True,
    "xla_sc_disable_megacore_partitioning": True,
}
SPARSE_CORES = ("TPU v6 lite",)  # JAX's names of the chips that shall use them

# The part of VMEM that one operation may use, in KiB, by JAX's name of the chip. The default of 16 MiB keeps the tiles
# of large matrix products small: with 32 MiB the compiler's cycles of a whole step fall by a tenth. More gains little
# and doubles the time of compilation, but on v6e, whose products are bound by what they read again. v4 has 16 MiB.
SCOPED_VMEM_KIB = dict.fromkeys(("TPU v5", "TPU v5p", "TPU v5 lite"), 32768) | {"TPU v6 lite": 65536}


def compiler_options(mesh: Mesh, chosen: Sequence[str] = ()) -> dict[str, bool | int | str]:
    """Options for the devices of a mesh: ours for TPUs, then those that the config chose.

    Args:
      mesh: of the step.
      chosen: `config.compute.xla_options`, "name=value" each.
    """
    device = mesh.devices.flat[0]
    options: dict[str, bool | int | str] = {}
    if device.platform == "tpu":
        options |= ASYNC_COLLECTIVES if mesh.size > 1 else {}
        options |= BESIDE_KERNELS if mesh.size > 1 and device.device_kind in ONE_CORE else {}
        options |= SPARSE_CORE_COLLECTIVES if mesh.size > 1 and device.device_kind in SPARSE_CORES else {}
        if device.device_kind in SCOPED_VMEM_KIB:
            options["xla_tpu_scoped_vmem_limit_kib"] = SCOPED_VMEM_KIB[device.device_kind]
    return options | dict(option.split("=", 1) for option in chosen)
