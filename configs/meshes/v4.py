"""TPU v4, 32 GiB of HBM per chip; meant for 512 chips (8 x 64)."""

import ml_collections

from configs.meshes.v5p import BESIDE_KERNELS

# What differs per stage, chosen by the figures of `python -m qwenvl_jax.plan` (docs/performance.md).
STAGES = {
    "pretrain": {"data.accumulation": 5, "compute.remat_vit": "matmuls_saved"},
    "multitask": {"data.accumulation": 4},
    "sft": {"data.accumulation": 1, "mesh.tensor": 4, "compute.xla_options": ()},  # BESIDE_KERNELS aborts the compiler
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    config.mesh = dict(data=-1, fsdp=64, tensor=1, slices=1, max_replicated_bytes=8 * 2**20)
    config.compute = dict(
        compute_dtype="bfloat16",
        frozen_dtype="bfloat16",
        attention="splash",
        remat_vit="attention_saved",
        remat_decoder="matmuls_saved",
        unroll_layers=False,
        loss_chunk=512,
        rotary_by_product=True,
        xla_options=(BESIDE_KERNELS,),
    )
