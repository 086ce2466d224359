"""The key-value cache of the decoder, and how new tokens are written into it.

Shape suffixes: S stacked layers, B rows, N heads, T cached tokens, L new tokens, K head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qwenvl_jax.config import DecoderConfig
from qwenvl_jax.models.parallel import per_row_and_head


class KeyValue(NamedTuple):
    """Keys (after rotary) and values, [B, N, T, K] of one layer or [S, B, N, T, K] of several.

    The tokens of a head lie together: in any other order the compilers for TPUs and GPUs would copy the whole cache
    before and after the decoding loop.
    """

    key: jax.Array
    value: jax.Array


class Cache(NamedTuple):
    """Keys and values of all layers: one part [S, B, N, T, K], or a part [B, N, T, K] for every layer.

    A stack suits a scan over layers. The compiler for CPUs copies a layer out of a stack before it multiplies, so that
    a step of decoding would move the whole cache twice more; an axis of length 1 would make it do the same.
    """

    parts: tuple[KeyValue, ...]

    @property
    def columns(self) -> int:
        """T, the tokens that a row has room for."""
        return self.parts[0].key.shape[-2]

    @property
    def stacked(self) -> bool:
        """Whether one part holds all layers."""
        return self.parts[0].key.ndim == 5

    @property
    def rows(self) -> int:
        """B."""
        return self.parts[0].key.shape[-4]

    def of_layer(self, number: int) -> KeyValue:
        """[B, N, T, K] keys and values of one layer."""
        part = self.parts[0]
        return KeyValue(part.key[number], part.value[number]) if self.stacked else self.parts[number]


def empty_cache(config: DecoderConfig, dtype: str, rows: int, columns: int, *, apart: bool = False) -> Cache:
    """A cache for `rows` rows of up to `columns` tokens; `apart` gives every layer a part of its own."""
    shape = (rows, config.heads, columns, config.head_dim)
    shapes = [shape] * config.layers if apart else [(config.layers, *shape)]
    return Cache(tuple(KeyValue(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes))


def written(past: KeyValue, new: KeyValue, column: jax.Array | int) -> KeyValue:
    """Keys and values with `new` in their columns from `column` on.

    Args:
      past: [B, N, T, K] or [S, B, N, T, K].
      new: the same, with L tokens instead of T.
      column: int32, a scalar, or [B] if L is 1.
    """
    column = jnp.asarray(column)
    stack = (0,) * (past.key.ndim - 4)
    if column.ndim == 0:
        start: tuple[Any, ...] = (*stack, 0, 0, column, 0)
        return KeyValue(
            jax.lax.dynamic_update_slice(past.key, new.key, start),
            jax.lax.dynamic_update_slice(past.value, new.value, start),
        )

    def by_row(past: jax.Array, new: jax.Array, column_B: jax.Array) -> jax.Array:
        # One update in place after another: a scatter would make compilers change the layout of the whole cache.
        for row in range(len(column_B)):
            newest = jax.lax.slice_in_dim(new, row, row + 1, axis=len(stack))
            past = jax.lax.dynamic_update_slice(past, newest, (*stack, row, 0, column_B[row], 0))
        return past

    rows, heads = past.key.shape[-4:-2]
    axes = "S" * len(stack) + "BNTK"
    write = per_row_and_head(by_row, (axes, axes, "B"), axes, rows, heads)
    return KeyValue(write(past.key, new.key, column), write(past.value, new.value, column))
