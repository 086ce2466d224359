"""What the recipes of all TPUs share: bfloat16, splash attention, scanned layers; `data` takes what `fsdp` leaves."""

import ml_collections

from qwenvl_jax.config.schema import COLLECTIVES_BESIDE_KERNELS

# With this option the compiler crashes on chips of two cores (v4, v5p) if it fuses a collective into the backward pass
# of attention. Whether it does depends on the shape of the batch; if it crashes, drop the option.
BESIDE_KERNELS = f"{COLLECTIVES_BESIDE_KERNELS}=true"


def apply(
    config: ml_collections.ConfigDict,
    *,
    fsdp: int,
    remat_vit: str,
    remat_decoder: str,
    loss_chunk: int = 512,
    rotary_by_product: bool = True,
    xla_options: tuple[str, ...] = (),
) -> None:
    """Sets `config.mesh` and `config.compute`; the arguments are the keys of the same name."""
    config.mesh = dict(data=-1, fsdp=fsdp, tensor=1, slices=1, max_replicated_bytes=8 * 2**20)
    config.compute = dict(
        compute_dtype="bfloat16",
        frozen_dtype="bfloat16",
        attention="splash",
        remat_vit=remat_vit,
        remat_decoder=remat_decoder,
        unroll_layers=False,
        loss_chunk=loss_chunk,
        rotary_by_product=rotary_by_product,
        xla_options=xla_options,
        compilation_cache="workdir",
    )
