"""XLA options per platform, of the training step and of programs that run once. Ours change no result."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import Mesh

from qwenvl_jax.chips import chip_of
from qwenvl_jax.config.schema import COLLECTIVES_BESIDE_KERNELS

# Without these options the cores of a TPU wait for every collective.
ASYNC_COLLECTIVES: dict[str, bool | int | str] = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}

# On chips whose two cores share the memory (v4, v5p) the compiler crashes in some programs if this is set; there a
# recipe may choose it (`configs/meshes/tpu.py`).
BESIDE_KERNELS = {COLLECTIVES_BESIDE_KERNELS: True}

# The SparseCores of a chip exchange data while its TensorCores compute; there is no other way to hide a reduce-scatter.
# Their collectives cannot be part of a fusion.
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


def compiler_options(mesh: Mesh, chosen: Sequence[str] = ()) -> dict[str, bool | int | str]:
    """Options for the devices of a mesh: ours for TPUs, then those that the config chose.

    Args:
      mesh: of the step.
      chosen: `config.compute.xla_options`, "name=value" each.
    """
    device = mesh.devices.flat[0]
    options: dict[str, bool | int | str] = {}
    chip = chip_of(device.device_kind)
    if device.platform == "tpu" and mesh.size > 1:
        options |= ASYNC_COLLECTIVES
        options |= BESIDE_KERNELS if chip and chip.one_core else {}
        options |= SPARSE_CORE_COLLECTIVES if chip and chip.sparse_cores else {}
    if chip and chip.scoped_vmem_kib:
        options["xla_tpu_scoped_vmem_limit_kib"] = chip.scoped_vmem_kib
    return options | dict(option.split("=", 1) for option in chosen)


def options_for_quick_compilation(platform: str) -> dict[str, bool | int | str] | None:
    """Options for a program that runs once and takes longer to compile than to run, such as the draw of fresh weights.

    On a CPU, LLVM's first level of optimisation halves the compilation and draws the same bits; level 0 does not.

    Args:
      platform: of the devices that run it, as `jax.default_backend` names it.
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None
