"""TPU v5e, 16 GiB of HBM per chip; meant for 256 chips (2 x 128). More than 128 ways the ViT's width of
1664 = 13 * 128 cannot be split.
"""

import ml_collections

# What differs per stage, chosen by the figures of `python -m qwenvl_jax.plan` (docs/performance.md).
STAGES = {
    "pretrain": {"data.accumulation": 15, "compute.remat_decoder": "matmuls_saved"},
    "multitask": {"data.accumulation": 8},
    "sft": {"data.accumulation": 1, "mesh.tensor": 2, "compute.remat_decoder": "matmuls_saved"},
}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    config.mesh = dict(data=-1, fsdp=128, tensor=1, slices=1, max_replicated_bytes=8 * 2**20)
    config.compute = dict(
        compute_dtype="bfloat16",
        frozen_dtype="bfloat16",
        attention="splash",
        remat_vit="attention_saved",
        remat_decoder="attention_saved",
        unroll_layers=False,
        loss_chunk=512,
        rotary_by_product=True,
    )
