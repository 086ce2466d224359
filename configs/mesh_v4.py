"""TPU v4, 32 GiB of HBM per chip; meant for 512 chips (8 x 64). Only the attention's results are kept for the
backward pass (predicted, not measured: accumulation 8 fits)."""

import ml_collections


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    config.mesh = dict(data=-1, fsdp=64, tensor=1, slices=1, max_replicated_bytes=8 * 2**20)
    config.compute = dict(
        compute_dtype="bfloat16",
        frozen_dtype="bfloat16",
        attention="splash",
        remat_vit="attention_saved",
        remat_decoder="attention_saved",
        unroll_layers=False,
        loss_chunk=1024,
    )
