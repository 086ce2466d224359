"""The chunked loss against torch's cross-entropy, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwenvl_jax.training.loss import token_loss_sum

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 9, 6, 11


def problem(seed: int = 0, share: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    mask = (rng.random((ROWS, LENGTH)) < share).astype(np.float32)
    head = rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    return hidden, targets, mask, head


def loss(chunk: int, train_head: bool = True) -> Callable[..., jax.Array]:
    """The sum over all sources, of (hidden, targets, mask, head)."""
    sources = np.zeros((ROWS, LENGTH), np.int32)
    return lambda hidden, targets, mask, head: (
        token_loss_sum(hidden, targets, mask, sources, head, 1, chunk, train_head).total
    )


def torch_answer(
    hidden: np.ndarray, targets: np.ndarray, mask: np.ndarray, head: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    hidden_t = torch.tensor(hidden, requires_grad=True)
    head_t = torch.tensor(head, requires_grad=True)
    labels = torch.tensor(np.where(mask > 0, targets, -100)).long()
    value = torch.nn.functional.cross_entropy((hidden_t @ head_t).flatten(0, 1), labels.flatten(), reduction="sum")
    value.backward()
    assert hidden_t.grad is not None and head_t.grad is not None
    return value.item(), hidden_t.grad.numpy(), head_t.grad.numpy()


@pytest.mark.parametrize("chunk", [1, 4, 7, 36, 1000])
def test_equals_torch(chunk: int) -> None:
    hidden, targets, mask, head = problem()
    function = loss(chunk)
    value, (dhidden, dhead) = jax.value_and_grad(function, argnums=(0, 3))(hidden, targets, mask, head)
    expected = torch_answer(hidden, targets, mask, head)
    assert float(value) == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(dhidden, expected[1], atol=1e-5)
    np.testing.assert_allclose(dhead, expected[2], atol=1e-5)
    assert float(function(hidden, targets, mask, head)) == pytest.approx(expected[0], rel=1e-5)


def test_gradient_is_scaled_by_what_comes_after() -> None:
    hidden, targets, mask, head = problem()
    total = mask.sum()
    function = loss(5)
    dhidden = jax.grad(lambda h: function(h, targets, mask, head) / total)(hidden)
    np.testing.assert_allclose(dhidden, torch_answer(hidden, targets, mask, head)[1] / total, atol=1e-6)


@pytest.mark.parametrize("chunk", [4, 1000])
def test_frozen_head_gets_no_gradient_and_costs_no_product(chunk: int) -> None:
    hidden, targets, mask, head = problem()
    function = loss(chunk, train_head=False)
    dhidden, dhead = jax.grad(function, argnums=(0, 3))(hidden, targets, mask, head)
    np.testing.assert_allclose(dhidden, torch_answer(hidden, targets, mask, head)[1], atol=1e-5)
    assert not np.any(dhead)
    jaxpr = str(jax.make_jaxpr(jax.grad(function))(hidden, targets, mask, head))
    assert jaxpr.count("dot_general") == 2  # logits and d hidden


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_supervised(share: float) -> None:
    hidden, targets, mask, head = problem(share=1.1 if share else -0.1)
    assert mask.mean() == share
    function = loss(5)
    value, dhidden = jax.value_and_grad(function)(hidden, targets, mask, head)
    expected = torch_answer(hidden, targets, mask, head)
    assert float(value) == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(dhidden, expected[1], atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 7, 36, 1000])
def test_sums_by_source_are_those_of_torch(chunk: int) -> None:
    """Also of a source without tokens; the numbers of tokens that are not supervised do not count."""
    hidden, targets, mask, head = problem()
    sources = np.random.default_rng(1).integers(0, 3, (ROWS, LENGTH)).astype(np.int32)
    sums = jax.jit(token_loss_sum, static_argnums=(5, 6, 7))(hidden, targets, mask, sources, head, 4, chunk, True)
    assert sums.by_source_S.shape == (4,) and sums.by_source_S.dtype == jnp.float32
    for number in range(4):
        expected, _, _ = torch_answer(hidden, targets, mask * (sources == number), head)
        assert float(sums.by_source_S[number]) == pytest.approx(expected, rel=1e-5)
    assert float(jnp.sum(sums.by_source_S)) == pytest.approx(float(sums.total), rel=1e-6)


@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_by_source_change_neither_loss_nor_gradients_by_a_bit(chunk: int, dtype: str) -> None:
    hidden, targets, mask, head = problem()
    rng = np.random.default_rng(1)

    def answers(source_count: int) -> Any:
        sources = rng.integers(0, source_count, (ROWS, LENGTH)).astype(np.int32)

        def losses(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
            return token_loss_sum(hidden, targets, mask, sources, head, source_count, chunk, True)

        arrays = jnp.asarray(hidden, dtype), jnp.asarray(head, dtype)
        (total, _), gradients = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))(*arrays)
        return total, gradients

    for one, other in zip(jax.tree.leaves(answers(1)), jax.tree.leaves(answers(5)), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


def test_sums_by_source_have_no_gradient() -> None:
    hidden, targets, mask, head = problem()
    sources = np.zeros((ROWS, LENGTH), np.int32)

    def sum_of_sums(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return jnp.sum(token_loss_sum(hidden, targets, mask, sources, head, 2, 4, True).by_source_S)

    gradients = jax.grad(sum_of_sums, argnums=(0, 1))(hidden, head)
    assert not any(np.any(gradient) for gradient in gradients)


def test_bfloat16_states_keep_a_float32_loss() -> None:
    hidden, targets, mask, head = problem()
    hidden16, head16 = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    function = loss(5)
    value, (dhidden, dhead) = jax.value_and_grad(function, argnums=(0, 3))(hidden16, targets, mask, head16)
    rounded = torch_answer(np.asarray(hidden16, np.float32), targets, mask, np.asarray(head16, np.float32))
    assert value.dtype == jnp.float32 and dhidden.dtype == jnp.bfloat16 and dhead.dtype == jnp.bfloat16
    assert float(value) == pytest.approx(rounded[0], rel=1e-4)
    np.testing.assert_allclose(np.asarray(dhead, np.float32), rounded[2], atol=0.05)


def test_logits_of_all_tokens_never_exist() -> None:
    hidden, targets, mask, head = problem()
    function = loss(6)
    text = jax.jit(jax.grad(function, argnums=(0, 3))).lower(hidden, targets, mask, head).compile().as_text()
    assert text is not None
    assert f"[6,{VOCABULARY}]" in text
    assert f"[{ROWS},{LENGTH},{VOCABULARY}]" not in text and f"[{ROWS * LENGTH},{VOCABULARY}]" not in text
