"""The product with a kernel and its gradients, against NumPy's and JAX's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.models.parallel import times


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "contract"),
    [
        ((2, 5, 3), (3, 7), 1),  # more outputs than inputs: x is transposed
        ((2, 5, 7), (7, 3), 1),  # fewer: the gradient is
        ((2, 5, 2, 4), (2, 4, 3), 2),
        ((2, 5, 3), (3, 2, 4), 1),
        ((2, 4, 6, 3), (4, 6, 3, 2), 3),
        ((5, 3), (3, 4), 1),
    ],
)
def test_products_and_gradients_are_those_of_sums(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], contract: int
) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=kernel_shape)
    inputs, outputs = int(np.prod(kernel_shape[:contract])), int(np.prod(kernel_shape[contract:]))
    flat_x, flat_kernel = x.reshape(-1, inputs), kernel.reshape(inputs, outputs)
    y, gradients = jax.vjp(lambda x, kernel: times(x, kernel, contract), *map(jnp.float32, (x, kernel)))
    np.testing.assert_allclose(y.reshape(-1, outputs), flat_x @ flat_kernel, rtol=1e-4, atol=1e-5)
    of_y = rng.normal(size=y.shape)
    flat = of_y.reshape(-1, outputs)
    of_x, of_kernel = gradients(jnp.float32(of_y))
    assert of_x.shape == x_shape and of_kernel.shape == kernel_shape
    np.testing.assert_allclose(of_x.reshape(-1, inputs), flat @ flat_kernel.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_kernel.reshape(inputs, outputs), flat_x.T @ flat, rtol=1e-4, atol=1e-5)


def test_a_frozen_kernel_keeps_no_activations() -> None:
    kernel = jnp.ones((3, 7))

    def kept(*trained: int) -> set[tuple[int, ...]]:
        def run(x: jax.Array) -> Any:
            arguments = [x, kernel]

            def of_trained(*values: jax.Array) -> jax.Array:
                given = dict(zip(trained, values, strict=True))
                return times(given.get(0, x), given.get(1, kernel), 1)

            return jax.vjp(of_trained, *(arguments[index] for index in trained))[1]

        return {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(run, jnp.ones((2, 5, 3))))}

    assert (2, 5, 3) in kept(0, 1) and (2, 5, 3) in kept(1)
    assert (2, 5, 3) not in kept(0)
