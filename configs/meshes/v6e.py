"""TPU v6e, 32 GiB of HBM per chip; meant for 256 chips (2 x 128, in stage 2 16 x 16), in stage 3 for 16."""

import ml_collections

from configs.meshes import tpu

STAGES = {
    "pretrain": {"data.accumulation": 8, "mesh.fsdp": 128, "compute.remat_decoder": "matmuls_saved"},
    "multitask": {"data.accumulation": 1, "data.streams": 256},
    "multitask_rows": {"data.accumulation": 4},
    "sft": {"data.accumulation": 1, "data.streams": 16, "compute.remat_decoder": "matmuls_saved"},
    "sft_rows": {"data.accumulation": 4},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    tpu.apply(config, fsdp=16, remat_vit="attention_saved", remat_decoder="attention_saved", loss_chunk=1024)
