"""TPU v4, 32 GiB of HBM per chip; meant for 512 chips (8 x 64), in stage 3 for 16."""

import ml_collections

from configs.meshes import tpu

STAGES = {
    "pretrain": {"data.accumulation": 5, "compute.remat_vit": "matmuls_saved"},
    "multitask": {"data.accumulation": 1, "data.streams": 256},
    "multitask_rows": {"data.accumulation": 4},
    # The compiler crashes on this stage with BESIDE_KERNELS.
    "sft": {"data.accumulation": 1, "data.streams": 16, "mesh.fsdp": 16, "compute.xla_options": ()},
    "sft_rows": {"data.accumulation": 4},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    tpu.apply(
        config,
        fsdp=64,
        remat_vit="attention_saved",
        remat_decoder="matmuls_saved",
        xla_options=(tpu.BESIDE_KERNELS,),
    )
