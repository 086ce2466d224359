"""TPU7x (Ironwood), 96 GiB of HBM for each of the two devices of a chip; meant for 128 chips, in stage 3 for 4.

A device computes 2.5 times as fast as a chip of v5p, but two devices share links that are as fast as those of v5p. So a
device has four rows in stages 2 and 3, and every gather has more products to hide behind. fsdp takes both devices of a
chip and two axes of the torus, and data the third.
"""

import ml_collections

from configs.meshes import tpu

STAGES = {
    "pretrain": {"data.accumulation": 3},
    "multitask": {"data.accumulation": 1, "data.streams": 256},
    "multitask_rows": {"data.accumulation": 4},
    # Without rings the links are half as fast: larger chunks, because every chunk sums the head's gradient.
    "sft": {"data.accumulation": 1, "data.streams": 16, "mesh.fsdp": 8, "compute.loss_chunk": 2048},
    "sft_rows": {"data.accumulation": 4},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    tpu.apply(config, fsdp=64, remat_vit="matmuls_saved", remat_decoder="matmuls_saved", loss_chunk=1024)
