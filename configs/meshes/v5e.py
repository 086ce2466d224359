"""TPU v5e, 16 GiB of HBM per chip; meant for 256 chips (2 x 128), in stage 3 for 32.

fsdp stops at 128 because the ViT's width is 1664 = 13 * 128.
"""

import ml_collections

from configs.meshes import tpu

STAGES = {
    "pretrain": {"data.accumulation": 15, "compute.remat_decoder": "matmuls_saved"},
    "multitask": {"data.accumulation": 1, "data.streams": 256},
    "multitask_rows": {"data.accumulation": 8, "data.streams": 128},
    "sft": {
        "data.accumulation": 1,
        "data.streams": 16,
        "mesh.fsdp": 32,
        "compute.remat_decoder": "matmuls_saved",
    },
    "sft_rows": {"data.accumulation": 4},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    tpu.apply(config, fsdp=128, remat_vit="attention_saved", remat_decoder="attention_saved")
