"""TPU v5p, 95 GiB of HBM per chip; meant for 512 chips (8 x 64), in stage 3 for 16.

The memory holds the results of all matrix products, so nothing is computed twice. fsdp takes two axes of the torus and
data the third. If fsdp spanned all three, XLA would all-reduce the gradients instead of reduce-scattering them. In
stage 3 it does span all three: with two of them a step is predicted to take 1 % longer (docs/log.md).
"""

import ml_collections

from configs.meshes import tpu

STAGES = {
    "pretrain": {"data.accumulation": 2},
    "multitask": {"data.accumulation": 1, "data.streams": 256},
    "multitask_rows": {"data.accumulation": 2},
    # Every chunk of the loss sums the gradient of the head over all chips, so the chunks are large.
    "sft": {"data.accumulation": 1, "data.streams": 16, "mesh.fsdp": 16, "compute.loss_chunk": 2048},
    "sft_rows": {"data.accumulation": 4},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    tpu.apply(
        config,
        fsdp=64,
        remat_vit="matmuls_saved",
        remat_decoder="matmuls_saved",
        rotary_by_product=False,
        xla_options=(tpu.BESIDE_KERNELS,),
    )
