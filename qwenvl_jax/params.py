"""Trees of parameters: the path and the component of a leaf, and the tree cut in two: the trained part and the frozen.

Gradients are taken with respect to the trainable tree alone, so that frozen weights have no gradient, moment, decay
or master copy, whatever reads the gradients afterwards. Both halves are nested dicts with only their own leaves.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]


def path_of(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    """The dict keys of a `jax.tree_util` key path."""
    return tuple(key.key for key in key_path)


def component_of(path: tuple[str, ...]) -> str:
    """The part of the model that a parameter path belongs to.

    Returns:
      `vit`, `vit_head` (`ln_post` and `proj`, which run after the resampler), `resampler`, `decoder`, or `fixed`
      for the resampler's sin-cos table, which is never trained.
    """
    if path[:2] in (("vit", "ln_post"), ("vit", "proj")):
        return "vit_head"
    return "fixed" if path[:2] == ("resampler", "position_embedding") else path[0]


def flatten(tree: Tree) -> dict[tuple[str, ...], Any]:
    """Leaves by path."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[tuple[str, ...], Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def split(params: Tree, trainable: tuple[str, ...]) -> tuple[Tree, Tree]:
    """Cuts `params` into (trainable, frozen) by component.

    Args:
      params: the whole tree, arrays or shapes.
      trainable: names out of `qwenvl_jax.config.COMPONENTS`. The resampler's sin-cos table ("fixed") is never one.
    """
    halves: tuple[dict, dict] = ({}, {})
    for path, leaf in flatten(params).items():
        halves[component_of(path) not in trainable][path] = leaf
    return unflatten(halves[0]), unflatten(halves[1])


def merge(first: Tree, second: Tree) -> Tree:
    """The tree with the leaves of both; the inverse of `split`."""
    return unflatten({**flatten(first), **flatten(second)})


def abstract_split(params: Tree, trainable: tuple[str, ...], frozen_dtype: str) -> tuple[Tree, Tree]:
    """`split` of shapes, with the dtypes that a run stores: float32 master weights, frozen ones in `frozen_dtype`."""
    train, frozen = split(params, trainable)
    return (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), train),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(frozen_dtype)), frozen),
    )
