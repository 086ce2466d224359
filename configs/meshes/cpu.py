"""CPUs: one device, or several virtual ones; float32, because CPUs have no fast bfloat16."""

from typing import Any

import ml_collections

STAGES: dict[str, dict[str, Any]] = {"sft_rows": {"data.accumulation": 8}}


def apply(config: ml_collections.ConfigDict) -> None:
    """Sets `config.mesh` and `config.compute`."""
    config.mesh = dict(data=-1, fsdp=1, tensor=1, slices=1, max_replicated_bytes=0)
    config.compute = dict(
        compute_dtype="float32",
        frozen_dtype="float32",
        attention="xla",
        remat_vit="none",
        remat_decoder="none",
        unroll_layers=True,
        loss_chunk=4096,
        compilation_cache="workdir",
    )
