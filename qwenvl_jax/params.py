"""Trees of parameters: the path and the component of a leaf, and the split into a trainable and a frozen tree.

Gradients are taken with respect to the trainable tree alone, so that frozen weights have no gradient, moment, decay
or master copy, whatever reads the gradients afterwards. Each of the two is a nested dict of its leaves only.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]  # nested dicts of arrays, shapes or shardings; top-level keys `vit`, `resampler`, `decoder`
Path = tuple[str, ...]  # of a leaf: the keys that lead to it

# Leaves of a low-rank adapter, beside the `kernel` of its projection (`models.lora`).
LORA_A = "lora_a"
LORA_B = "lora_b"
LORA_SCALE = "lora_scale"
LORA_DROPOUT = "lora_dropout"  # within a step only

LORA = "lora"  # the component of trained adapters
VOCABULARY = "vocabulary"  # a name for the embedding and the head, whose component is the decoder

PyTree = Any  # nested containers of any kind, as `jax.tree` walks them


def path_of(key_path: tuple[Any, ...]) -> Path:
    """The dict keys of a `jax.tree_util` key path."""
    return tuple(key.key for key in key_path)


def parse_path(joined: str) -> Path:
    """The path whose keys are joined by `/`."""
    return tuple(joined.split("/"))


def is_stacked(path: Path) -> bool:
    """Whether the parameters at or below this path have a leading layer axis."""
    return "blocks" in path


def component_of(path: Path) -> str:
    """The component of the model that a parameter path belongs to.

    Returns:
      `vit`, `vit_head` (`ln_post` and `proj`, which run after the resampler), `resampler`, `decoder`, `lora`, or
      `fixed` for the resampler's sin-cos table and the scale of an adapter, which are never trained.
    """
    if path[-1] in (LORA_A, LORA_B):
        return LORA
    if path[-1] == LORA_SCALE:
        return "fixed"
    if path[:2] in (("vit", "ln_post"), ("vit", "proj")):
        return "vit_head"
    return "fixed" if path[:2] == ("resampler", "position_embedding") else path[0]


def is_vocabulary(path: Path) -> bool:
    """Whether a parameter is the embedding or the head of the decoder."""
    return path in (("decoder", "embedding"), ("decoder", "lm_head"))


def is_trained(path: Path, trainable: tuple[str, ...]) -> bool:
    """Whether a parameter is trained by a stage that trains the named components."""
    if VOCABULARY in trainable and is_vocabulary(path):
        return True
    return component_of(path) in trainable


def flatten(tree: Params) -> dict[Path, Any]:
    """Leaves by path."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[Path, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def flatten_paths(tree: Params) -> dict[str, Any]:
    """Leaves by path, with the keys of a path joined by `/`."""
    return {"/".join(path): leaf for path, leaf in flatten(tree).items()}


def unflatten_paths(leaves: dict[str, Any]) -> Params:
    """The inverse of `flatten_paths`."""
    return unflatten({parse_path(path): leaf for path, leaf in leaves.items()})


def split(params: Params, trainable: tuple[str, ...]) -> tuple[Params, Params]:
    """Cuts `params` into (trainable, frozen) by component.

    Args:
      params: the whole tree, arrays or shapes.
      trainable: names from `qwenvl_jax.config.TRAINABLE`. The resampler's sin-cos table ("fixed") is always frozen.
    """
    trained: dict[Path, Any] = {}
    frozen: dict[Path, Any] = {}
    for path, leaf in flatten(params).items():
        half = trained if is_trained(path, trainable) else frozen
        half[path] = leaf
    return unflatten(trained), unflatten(frozen)


def merge(first: Params, second: Params) -> Params:
    """The tree with the leaves of both; the inverse of `split`."""
    return unflatten({**flatten(first), **flatten(second)})


def abstract_split(params: Params, trainable: tuple[str, ...], frozen_dtype: str) -> tuple[Params, Params]:
    """`split` of shapes, with the dtypes that a run stores: float32 master weights, frozen ones in `frozen_dtype`.

    The scale of an adapter is a number of the config, which is not rounded.
    """
    trained, frozen = split(params, trainable)
    stored = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype("float32" if path[-1] == LORA_SCALE else frozen_dtype))
        for path, leaf in flatten(frozen).items()
    }
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trained), unflatten(stored)
