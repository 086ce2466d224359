"""Low-rank adapters in the tree of parameters: their leaves, their first values, their dropout, and merging.

An adapted projection has three leaves beside its `kernel`, from which `layers.Projection` sees that it is adapted:
`lora_a` [*inputs, r], `lora_b` [r, *outputs] and `lora_scale` (alpha / rank). In blocks all of them have a leading
layer axis. The first two are trained; the scale belongs to the frozen weights, so that a tree says all about itself.

Shape suffixes: B rows, L tokens, I images, H pixels, C channels, S stacked layers, r rank.
"""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from qwenvl_jax.config import LORA_TARGETS, LoraConfig, ModelConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import (
    LORA_A,
    LORA_B,
    LORA_DROPOUT,
    LORA_SCALE,
    Params,
    Path,
    flatten,
    is_stacked,
    parse_path,
    unflatten,
)


def is_adapter(path: Path) -> bool:
    """Whether a leaf belongs to an adapter."""
    return path[-1] in (LORA_A, LORA_B, LORA_SCALE)


def init_params(model: ModelConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters with adapters: the tree of `qwen_vl.init_params` and the leaves of the adapters.

    As in PEFT, A is uniform within 1 / sqrt(inputs), and B is 0, so that fresh adapters change nothing. The values of
    an adapter do not depend on which others there are.
    """
    leaves = flatten(qwen_vl.init_params(model, key))
    for target in lora.adapted:
        path = parse_path(target)
        shape = leaves[(*path, "kernel")].shape
        layers = shape[:1] if is_stacked(path) else ()
        inputs = shape[len(layers) : len(layers) + LORA_TARGETS[target]]
        outputs = shape[len(layers) + len(inputs) :]
        bound = 1 / math.sqrt(math.prod(inputs))
        key_a = jax.random.fold_in(key, zlib.crc32(target.encode()))
        leaves[(*path, LORA_A)] = jax.random.uniform(key_a, (*layers, *inputs, lora.rank), minval=-bound, maxval=bound)
        leaves[(*path, LORA_B)] = jnp.zeros((*layers, lora.rank, *outputs))
        leaves[(*path, LORA_SCALE)] = jnp.full(layers, lora.scale, jnp.float32)
    return unflatten(leaves)


def abstract_params(model: ModelConfig, lora: LoraConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return jax.eval_shape(functools.partial(init_params, model, lora), jax.random.key(0))


def with_dropout(
    params: Params,
    lora: LoraConfig,
    seed: int,
    step: jax.Array | int,
    tokens_BL: jax.Array,
    images_IHWC: jax.Array | None,
) -> Params:
    """The parameters of one step of training: adapters have in addition the keys of their dropout.

    What is left out depends on the seed, the step, the layer, the projection and the contents of the row or image, so
    neither on the mesh nor on accumulation, and a step that is taken again leaves out the same.

    Args:
      params: with adapters; returned as they are if nothing is to be left out.
      lora: of the run.
      seed: of the run.
      step: its number, counted from 0.
      tokens_BL, images_IHWC: of the microbatch.
    """
    if not lora.dropout:
        return params
    leaves = flatten(params)
    key = jax.random.fold_in(jax.random.key(seed), step)
    for target in lora.adapted:
        path = parse_path(target)
        rows = tokens_BL if path[0] == "decoder" else images_IHWC
        if rows is None:
            continue
        layers = leaves[(*path, LORA_SCALE)].shape
        of_target = jax.random.fold_in(key, zlib.crc32(target.encode()))
        keys: Any = _fold_in(of_target, _digests(rows))
        if layers:
            keys = jax.vmap(lambda layer, keys=keys: _fold_in(keys, layer))(jnp.arange(layers[0]))
        leaves[(*path, LORA_DROPOUT, "keys")] = jax.random.key_data(keys)
        leaves[(*path, LORA_DROPOUT, "keep")] = jnp.full(layers, 1 - lora.dropout, jnp.float32)
    return unflatten(leaves)


def _fold_in(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Folds one number or many into one key or many."""
    fold_in = jax.random.fold_in
    if keys.ndim:
        return jax.vmap(lambda key: fold_in(key, numbers))(keys)
    return jax.vmap(lambda number: fold_in(keys, number))(numbers)


def _digests(rows: jax.Array) -> jax.Array:
    """[B, ...] integers to uint32 [B]: sums, modulo 2^32, with an odd factor for every place."""
    flat = rows.reshape(rows.shape[0], -1).astype(jnp.uint32)
    factors = (2 * jnp.arange(flat.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B1)
    return jnp.sum(flat * factors, axis=1, dtype=jnp.uint32)


def merged_kernel(kernel: Any, lora_a: Any, lora_b: Any, scale: Any) -> Any:
    """kernel + scale * A B in float32, of the shape of `kernel`, stacked or not; NumPy or JAX, as the arguments are."""
    layers = lora_a.shape[: scale.ndim]
    low = lora_a.reshape(*layers, -1, lora_a.shape[-1]).astype("float32")
    high = lora_b.reshape(*layers, lora_a.shape[-1], -1).astype("float32")
    update = scale.reshape(*layers, 1, 1).astype("float32") * (low @ high)
    return kernel.astype("float32") + update.reshape(kernel.shape)
