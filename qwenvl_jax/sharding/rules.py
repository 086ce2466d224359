"""Which mesh axis splits which axis of every parameter and batch field.

Two tables. `LOGICAL_AXES` names the axes of each parameter by its path; `MESH_AXES` says, per tower, which mesh axis
a name is split over. Kernels split their input axis over `fsdp` where they can: then their gradients are
reduce-scattered, while a split of the last axis gets them all-reduced.

Shape suffixes as in `qwenvl_jax.models`; S stacked layers.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.data.schema import Batch
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import BATCH_AXES

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
    "vit/blocks/attn/out/kernel": ("layer", "head", "head_size", "width_out"),
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
    "resampler/attn/out/kernel": ("head", "head_size", "width_out"),
    "resampler/attn/out/bias": ("none",),
    "decoder/embedding": ("vocabulary", "width"),
    "decoder/blocks/ln_1/scale": ("layer", "none"),
    "decoder/blocks/ln_2/scale": ("layer", "none"),
    "decoder/blocks/attn/qkv/kernel": ("layer", "width", "none", "head", "none"),
    "decoder/blocks/attn/qkv/bias": ("layer", "none", "head", "none"),
    "decoder/blocks/attn/out/kernel": ("layer", "head", "head_size", "width_out"),
    "decoder/blocks/mlp/up/kernel": ("layer", "width", "hidden"),
    "decoder/blocks/mlp/gate/kernel": ("layer", "width", "hidden"),
    "decoder/blocks/mlp/down/kernel": ("layer", "hidden_in", "none"),
    "decoder/ln_f/scale": ("none",),
    "decoder/lm_head": ("width", "vocabulary"),
}

_COMMON: dict[str, Any] = {
    "none": None,
    "layer": None,  # the scan walks over it
    "width": "fsdp",
    "head": "tensor",
    "hidden": "tensor",
    "hidden_in": ("tensor", "fsdp"),
    "vocabulary": "tensor",
}
MESH_AXES: dict[str, dict[str, Any]] = {
    # The ViT's heads are 104 wide, which only 2, 4 and 8 divide: its output kernels split their last axis instead.
    "vit": {**_COMMON, "head_size": None, "width_out": "fsdp"},
    "resampler": {**_COMMON, "head_size": "fsdp", "width_out": None},
    "decoder": {**_COMMON, "head_size": "fsdp", "width_out": None},
}


def path_of(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    """The dict keys of a `jax.tree_util` key path."""
    return tuple(key.key for key in key_path)


def param_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
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
    table = MESH_AXES[path[0]]
    spec: list[Any] = []
    for logical, size in zip(LOGICAL_AXES[name], shape, strict=True):
        axes = table[logical]
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


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """The `NamedSharding` of every leaf of a parameter tree (any part of the whole tree, arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, param_spec(path_of(path), leaf.shape, mesh)), params
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh) -> Any:
    """A `Batch` of shardings: rows and images are split over `data` and `fsdp`, the microbatch axis A is not."""
    rows: Any = NamedSharding(mesh, P(None, BATCH_AXES))
    return Batch(*[rows] * len(Batch._fields))


def check_batch(rows: int, mesh: Mesh) -> None:
    """Raises UserError if the rows of a microbatch cannot be split over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(
            f"a microbatch of {rows} rows (config.data.global_batch_size / accumulation) cannot be split over "
            f"data x fsdp = {shards} devices; change one of them"
        )
