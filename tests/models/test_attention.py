"""The implementations of attention against a plain loop and against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.models.attention import attention, decode_attention, resolve_attention
from qwenvl_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: Callable[[int, int, int], bool]) -> np.ndarray:
    """Float64 loop; `seen(row, l, t)` tells whether query l attends to key t."""
    out = np.zeros(q.shape)
    for b, i, n in np.ndindex(q.shape[:3]):
        keys = [t for t in range(k.shape[1]) if seen(b, i, t)]
        scores = np.array([q[b, i, n].astype(np.float64) @ k[b, t, n] for t in keys]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, n] = (weights / weights.sum()) @ v[b, keys, n]
    return out


def tensors(rows: int = 2, queries: int = 10, keys: int = 10, heads: int = 2, size: int = 6) -> tuple[Any, ...]:
    """Random queries, keys and values."""
    shapes = ((rows, queries, heads, size), (rows, keys, heads, size), (rows, keys, heads, size))
    return tuple(RNG.normal(size=s).astype(np.float32) for s in shapes)


SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0, 0], [1, 1, 2, 3, 3, 3, 3, 3, 3, 0]], np.int32)


@pytest.mark.parametrize("causal", [True, False])
def test_xla_equals_a_loop(causal: bool) -> None:
    q, k, v = tensors()
    ours = attention(q, k, v, segment_ids_BL=jnp.asarray(SEGMENTS), causal=causal)
    expected = reference(q, k, v, lambda b, i, j: SEGMENTS[b, i] == SEGMENTS[b, j] and (j <= i or not causal))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_cross_attention_without_segments() -> None:
    q, k, v = tensors(queries=4, keys=9)
    np.testing.assert_allclose(attention(q, k, v), reference(q, k, v, lambda *_: True), atol=1e-5)


def test_softmax_accumulates_in_float32() -> None:
    """Over 4096 equal keys a bfloat16 sum would stall at 256."""
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    k, v = jnp.zeros((1, 4096, 1, 8), jnp.bfloat16), jnp.ones((1, 4096, 1, 8), jnp.bfloat16)
    np.testing.assert_allclose(attention(q, k, v).astype(jnp.float32), 1.0, atol=0.01)


@pytest.mark.parametrize("causal", [True, False])
def test_splash_equals_xla_with_its_gradients(causal: bool) -> None:
    """In Pallas' interpreter; lengths and head size are no multiples of the kernel's tiles."""
    q, k, v = (jnp.asarray(x) for x in tensors(rows=1))
    ids = jnp.asarray(SEGMENTS[:1])

    def run(implementation: str) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attention(q, k, v, segment_ids_BL=ids, causal=causal, implementation=implementation, interpret=True)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run("splash"), run("xla"))


def test_splash_lowers_for_tpu_with_the_head_size_of_the_vit() -> None:
    q = jax.ShapeDtypeStruct((2, 256, 2, 104), jnp.bfloat16)
    gradient = jax.grad(lambda q: jnp.sum(attention(q, q, q, implementation="splash").astype(jnp.float32)))
    text = jax.jit(gradient).trace(q).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2  # forward and the fused backward pass


def test_decode_attention_is_the_last_row_of_the_whole() -> None:
    q, k, v = tensors()
    valid = SEGMENTS > 0
    valid[:, -1] = True  # a token always sees itself
    key_BNTK, value_BNTK = (jnp.swapaxes(x[:, :-1], 1, 2) for x in (k, v))
    out = decode_attention(q[:, -1], k[:, -1], v[:, -1], key_BNTK, value_BNTK, jnp.asarray(valid[:, :-1]))
    expected = reference(q, k, v, lambda b, i, j: valid[b, j])[:, -1]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_decode_attention_with_an_empty_cache_returns_the_own_value() -> None:
    q, k, v = tensors()
    key_BNTK, value_BNTK = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    out = decode_attention(q[:, 0], k[:, 0], v[:, 0], key_BNTK, value_BNTK, jnp.zeros((2, 10), bool))
    np.testing.assert_allclose(out, v[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "backend", "dtype", "expected"),
    [
        ("auto", "tpu", "bfloat16", "splash"),
        ("auto", "gpu", "bfloat16", "cudnn"),
        ("auto", "cuda", "bfloat16", "cudnn"),
        ("auto", "gpu", "float32", "xla"),
        ("auto", "cpu", "float32", "xla"),
        ("xla", "tpu", "bfloat16", "xla"),
        ("splash", "tpu", "float32", "splash"),
    ],
)
def test_resolve_attention(name: str, backend: str, dtype: str, expected: str) -> None:
    assert resolve_attention(name, backend, dtype) == expected


@pytest.mark.parametrize(
    ("name", "backend", "dtype", "message"),
    [
        ("splash", "cpu", "bfloat16", "does not run on the backend 'cpu'"),
        ("cudnn", "tpu", "bfloat16", "does not run on the backend 'tpu'"),
        ("splash", "gpu", "bfloat16", "does not run on the backend 'gpu'"),
        ("cudnn", "gpu", "float32", "needs config.compute.compute_dtype='bfloat16'"),
        ("splsh", "tpu", "bfloat16", "did you mean 'splash'"),
    ],
)
def test_resolve_attention_refuses_what_the_backend_lacks(name: str, backend: str, dtype: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_attention(name, backend, dtype)


def test_causal_needs_as_many_keys_as_queries() -> None:
    q, k, v = tensors(queries=4)
    with pytest.raises(ValueError, match="as many keys"):
        attention(q, k, v, causal=True)
