"""Which mesh axes split which axis of every parameter.

There are two tables. `LOGICAL_AXES` gives a name to every axis of every parameter, by the parameter's path; `MESH_AXES`
says which mesh axes an axis of that name is split over. How the towers gather these parts and sum their gradients is in
`models.parallel`.

Shape suffixes as in `qwenvl_jax.models`; S stacked layers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import LORA_TARGETS, QUANTISED_TARGETS, ModelConfig
from qwenvl_jax.params import LORA_A, LORA_B, LORA_SCALE, Params, path_of
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import AnyMesh

# Path -> names of the axes. Norms and biases along the width are small and are not split ("none").
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

MESH_AXES: dict[str, tuple[str, ...]] = {
    "none": (),
    "layer": (),  # the scan runs over it
    "width": ("fsdp",),
    "width_out": ("fsdp",),
    "head": ("tensor",),
    "hidden": ("tensor",),
    "hidden_in": ("tensor", "fsdp"),
    "vocabulary": ("tensor",),
    "rank": ("fsdp",),
}


def _lora_axes() -> dict[str, tuple[str, ...]]:
    """The names of the axes of low-rank adapters.

    Inputs and outputs are split as those of the kernel. One of the two factors has no axis over `fsdp` then, and is
    split along its rank.
    """
    names: dict[str, tuple[str, ...]] = {}
    for target, inputs in LORA_TARGETS.items():
        of_kernel = LOGICAL_AXES[f"{target}/kernel"]
        layer = tuple(name for name in of_kernel if name == "layer")
        axes = of_kernel[len(layer) :]
        over_fsdp = any("fsdp" in MESH_AXES[name] for name in axes[:inputs])
        names[f"{target}/{LORA_A}"] = (*layer, *axes[:inputs], "none" if over_fsdp else "rank")
        over_fsdp = any("fsdp" in MESH_AXES[name] for name in axes[inputs:])
        names[f"{target}/{LORA_B}"] = (*layer, "none" if over_fsdp else "rank", *axes[inputs:])
        names[f"{target}/{LORA_SCALE}"] = layer
    return names


# The leaves of a quantised kernel (`models.quantised`), by the scheme.
QUANTISED_LEAVES = {
    "int8": ("kernel_int8", "kernel_scale"),
    "nf4": ("kernel_nf4", "kernel_absmax", "kernel_absmax_scale", "kernel_absmax_mean"),
}


def _quantised_axes() -> dict[str, tuple[str, ...]]:
    """The names of the axes of quantised kernels: codes are split as the kernel is.

    What belongs to blocks is not split along the blocks, and what belongs to channels along the channels only.
    """
    names: dict[str, tuple[str, ...]] = {}
    for target in QUANTISED_TARGETS:
        inputs = LORA_TARGETS[target]
        of_kernel = LOGICAL_AXES[f"{target}/kernel"]
        layers = sum(name == "layer" for name in of_kernel)
        summed = layers + inputs
        outputs = len(of_kernel) - summed
        of_int8, of_scale = QUANTISED_LEAVES["int8"]
        names[f"{target}/{of_int8}"] = of_kernel
        names[f"{target}/{of_scale}"] = (*of_kernel[:layers], *("none",) * inputs, *of_kernel[summed:])
        codes, absmax, *of_input = QUANTISED_LEAVES["nf4"]
        names[f"{target}/{codes}"] = of_kernel
        names[f"{target}/{absmax}"] = (*of_kernel[:-1], "none")
        for leaf in of_input:
            names[f"{target}/{leaf}"] = (*of_kernel[:summed], *("none",) * outputs)
    return names


LOGICAL_AXES |= _lora_axes() | _quantised_axes()


def param_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh: AnyMesh) -> P:
    """The partition of one parameter.

    Args:
      path: its keys, e.g. ("vit", "blocks", "mlp", "up", "kernel").
      shape: its shape.
      mesh: from `make_mesh`.

    Raises:
      UserError: if the size of an axis is not divisible by the devices it is split over (the ViT's width
        1664 = 13 * 128 cannot be split 256 ways).
    """
    name = "/".join(path)
    if name not in LOGICAL_AXES:
        raise KeyError(f"parameter {name} has no entry in sharding.rules.LOGICAL_AXES")
    spec: list[Any] = []
    for logical, size in zip(LOGICAL_AXES[name], shape, strict=True):
        used = tuple(axis for axis in MESH_AXES[logical] if mesh.shape[axis] > 1)
        parts = math.prod(mesh.shape[axis] for axis in used)
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
    """Indices of the axes of a kernel that are split over `fsdp` and over `tensor`; the stacked layers do not count.

    `tensor` is None if no axis is split over it. If both are the same axis, it is split over `tensor` first.
    """

    fsdp: int
    tensor: int | None


def kernel_axes(path: tuple[str, ...]) -> KernelAxes:
    """How a kernel is split; a kernel with an unknown path is split over `fsdp` along its first axis.

    Example: ("decoder", "blocks", "mlp", "up", "kernel") has the axes (layer, width, hidden), so it is split along
    its width over `fsdp` and along its hidden axis over `tensor`: KernelAxes(0, 1).
    """
    names = [name for name in LOGICAL_AXES.get("/".join(path), ()) if name != "layer"]
    over_fsdp = [axis for axis, name in enumerate(names) if "fsdp" in MESH_AXES[name]]
    over_tensor = [axis for axis, name in enumerate(names) if "tensor" in MESH_AXES[name]]
    return KernelAxes(fsdp=over_fsdp[0] if over_fsdp else 0, tensor=over_tensor[0] if over_tensor else None)


def param_shardings(params: Params, mesh: AnyMesh) -> Params:
    """The `NamedSharding` of every leaf of a parameter tree, whole or in part, of arrays or of shapes."""
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
        have = ", ".join(f"{name} {count}" for name, count in heads.items())
        raise UserError(
            f"config.mesh.tensor {parts} does not divide the attention heads of every tower ({have}); "
            f"take {' or '.join(map(str, fitting))}"
        )
