"""Which mesh axis splits which axis of every parameter and batch field.

Two tables. `LOGICAL_AXES` names the axes of each parameter by its path; `MESH_AXES` says which mesh axis a name is
split over. How the towers gather what is split here, and sum its gradients, is said in `models.parallel`.

Shape suffixes as in `qwenvl_jax.models`; S stacked layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import ModelConfig
from qwenvl_jax.params import path_of
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import AnyMesh

# Path -> names of the axes. Norms and biases along the width are small and stay whole ("none").
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "vit/patch_embed/kernel": ("none", "none", "none", "width"),
    "vit/position_embedding": ("none", "width"),
    "vit/ln_pre/scale": ("none",),
    "vit/ln_pre/bias": ("none",),
    "vit/blocks/ln_1/scale": ("layer", "none"),
    "vit/blocks/ln_1/bias": ("layer", "none"),
    "vit/blocks/ln_2/scale": ("layer", "none"),
    "vit/blocks/ln_2/bias": ("layer", "none"),
    "vit/blocks/attn/qkv/kernel": ("layer", "width", "none", "head", "none"),
    "vit/blocks/attn/qkv/bias": ("layer", "none", "head", "none"),
    "vit/blocks/attn/out/kernel": ("layer", "head", "none", "width_out"),
    "vit/blocks/attn/out/bias": ("layer", "none"),
    "vit/blocks/mlp/up/kernel": ("layer", "width", "hidden"),
    "vit/blocks/mlp/up/bias": ("layer", "hidden"),
    "vit/blocks/mlp/down/kernel": ("layer", "hidden_in", "none"),
    "vit/blocks/mlp/down/bias": ("layer", "none"),
    "vit/ln_post/scale": ("none",),
    "vit/ln_post/bias": ("none",),
    "vit/proj": ("width", "none"),
    "resampler/query": ("none", "width"),
    "resampler/position_embedding": ("none", "width"),
    "resampler/kv_proj/kernel": ("width", "none"),
    "resampler/ln_q/scale": ("none",),
    "resampler/ln_q/bias": ("none",),
    "resampler/ln_kv/scale": ("none",),
    "resampler/ln_kv/bias": ("none",),
    "resampler/attn/query/kernel": ("width", "head", "none"),
    "resampler/attn/query/bias": ("head", "none"),
    "resampler/attn/key/kernel": ("width", "head", "none"),
    "resampler/attn/key/bias": ("head", "none"),
    "resampler/attn/value/kernel": ("width", "head", "none"),
    "resampler/attn/value/bias": ("head", "none"),
    "resampler/attn/out/kernel": ("head", "none", "width_out"),
    "resampler/attn/out/bias": ("none",),
    "decoder/embedding": ("vocabulary", "width"),
    "decoder/blocks/ln_1/scale": ("layer", "none"),
    "decoder/blocks/ln_2/scale": ("layer", "none"),
    "decoder/blocks/attn/qkv/kernel": ("layer", "width", "none", "head", "none"),
    "decoder/blocks/attn/qkv/bias": ("layer", "none", "head", "none"),
    "decoder/blocks/attn/out/kernel": ("layer", "head", "none", "width_out"),
    "decoder/blocks/mlp/up/kernel": ("layer", "width", "hidden"),
    "decoder/blocks/mlp/gate/kernel": ("layer", "width", "hidden"),
    "decoder/blocks/mlp/down/kernel": ("layer", "hidden_in", "none"),
    "decoder/ln_f/scale": ("none",),
    "decoder/lm_head": ("width", "vocabulary"),
}

MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "none": None,
    "layer": None,  # the scan walks over it
    "width": "fsdp",
    "width_out": "fsdp",
    "head": "tensor",
    "hidden": "tensor",
    "hidden_in": ("tensor", "fsdp"),
    "vocabulary": "tensor",
}


def param_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh: AnyMesh) -> P:
    """The partition of one parameter.

    Args:
      path: its keys, e.g. ("vit", "blocks", "mlp", "up", "kernel").
      shape: its shape.
      mesh: from `make_mesh`.

    Raises:
      UserError: if an axis does not divide by the devices it is split over (the ViT's width 1664 = 13 * 128 cannot
        be split 256 ways).
    """
    name = "/".join(path)
    if name not in LOGICAL_AXES:
        raise KeyError(f"parameter {name} has no entry in sharding.rules.LOGICAL_AXES")
    spec: list[Any] = []
    for logical, size in zip(LOGICAL_AXES[name], shape, strict=True):
        axes = MESH_AXES[logical]
        names = (axes,) if isinstance(axes, str) else axes or ()
        used = tuple(axis for axis in names if mesh.shape[axis] > 1)
        parts = 1
        for axis in used:
            parts *= mesh.shape[axis]
        if size % parts:
            raise UserError(
                f"the parameter {name} of shape {shape} cannot be split {parts} ways over {' x '.join(used)} along "
                f"its axis of {size}; choose config.mesh.fsdp and config.mesh.tensor that divide it"
            )
        spec.append(used[0] if len(used) == 1 else (used or None))
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


class KernelAxes(NamedTuple):
    """The axis of a kernel that is split over `fsdp`, and the one over `tensor`, or None; if they are the same, then
    over `tensor` first."""

    fsdp: int
    tensor: int | None


def kernel_axes(path: tuple[str, ...]) -> KernelAxes:
    """How a kernel is split, not counting the axis of the layers; along its first axis if its path is unknown."""
    names = [name for name in LOGICAL_AXES.get("/".join(path), ()) if name != "layer"]
    fsdp, tensor = (
        [axis for axis, name in enumerate(names) if mesh_axis in (MESH_AXES[name] or ())]
        for mesh_axis in ("fsdp", "tensor")
    )
    return KernelAxes(fsdp[0] if fsdp else 0, tensor[0] if tensor else None)


def param_shardings(params: Any, mesh: AnyMesh) -> Any:
    """The `NamedSharding` of every leaf of a parameter tree (any part of the whole tree, arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, param_spec(path_of(path), leaf.shape, mesh)), params
    )


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def check_heads(model: ModelConfig, mesh: AnyMesh) -> None:
    """Raises UserError if the attention heads of a tower cannot be split over the mesh."""
    heads = {"vit": model.vit.heads, "resampler": model.resampler.heads, "decoder": model.decoder.heads}
    parts = mesh.shape["tensor"]
    if any(count % parts for count in heads.values()):
        fitting = [size for size in range(1, parts) if not any(count % size for count in heads.values())]
        raise UserError(
            f"config.mesh.tensor {parts} does not divide the attention heads of every tower "
            f"({', '.join(f'{name} {count}' for name, count in heads.items())}); take {' or '.join(map(str, fitting))}"
        )
