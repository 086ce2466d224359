"""TPU v5e, 16 GiB of HBM per chip; meant for 256 chips (2 x 128).

fsdp stops at 128 because the ViT's width is 1664 = 13 * 128.
"""

import ml_collections

from configs.meshes import tpu

STAGES = {
    "pretrain": {"data.accumulation": 15, "compute.remat_decoder": "matmuls_saved"},
    "multitask": {"data.accumulation": 8},
    "sft": {"data.accumulation": 1, "mesh.tensor": 2, "compute.remat_decoder": "matmuls_saved"},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    tpu.apply(config, fsdp=128, remat_vit="attention_saved", remat_decoder="attention_saved")
