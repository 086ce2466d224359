"""TPU v5p, 95 GiB of HBM per chip; meant for 512 chips (8 x 64), stage 3 for 64. Memory suffices to keep all matrix
products, so nothing is computed twice. fsdp lies on two axes of the torus, data on the third: over all three gradients
would be all-reduced instead of reduce-scattered.
"""

import ml_collections

# On chips of two cores (v4, v5p) the compiler aborts with this where a collective and the backward pass of attention
# become one operation, as they may with other numbers of rows; then leave it out.
BESIDE_KERNELS = "xla_tpu_enable_async_collective_fusion_with_mosaic_custom_call=true"

# What differs per stage, chosen by the figures of `python -m qwenvl_jax.plan` (docs/performance.md).
STAGES = {
    "pretrain": {"data.accumulation": 3},
    "multitask": {"data.accumulation": 2},
    "sft": {"data.accumulation": 1, "mesh.fsdp": 32},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    config.mesh = dict(data=-1, fsdp=64, tensor=1, slices=1, max_replicated_bytes=8 * 2**20)
    config.compute = dict(
        compute_dtype="bfloat16",
        frozen_dtype="bfloat16",
        attention="splash",
        remat_vit="matmuls_saved",
        remat_decoder="matmuls_saved",
        unroll_layers=False,
        loss_chunk=512,
        xla_options=(BESIDE_KERNELS,),
    )
