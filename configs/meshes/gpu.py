"""NVIDIA GPUs: everything split over all devices; cuDNN attention."""

from typing import Any

import ml_collections

STAGES: dict[str, dict[str, Any]] = {"sft_rows": {"data.accumulation": 8}}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    config.mesh = dict(data=1, fsdp=-1, tensor=1, slices=1, max_replicated_bytes=8 * 2**20)
    config.compute = dict(
        compute_dtype="bfloat16",
        frozen_dtype="bfloat16",
        attention="cudnn",
        remat_vit="full",
        remat_decoder="full",
        unroll_layers=False,
        loss_chunk=1024,
        compilation_cache="workdir",
    )
