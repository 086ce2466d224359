"""Muon: matrices move by their orthogonalised momentum, everything else by Adam (Jordan 2024; arXiv:2502.16982).

An option beside the paper's AdamW (`config.optimizer.kind`). The quickstart takes it, because its small models learn in
half the steps. On a mesh the compiler decides how kernels that lie on several devices are orthogonalised; large models
were not tried.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from qwenvl_jax.config import OptimizerConfig
from qwenvl_jax.params import Params, path_of

# The root mean square of an update of Adam, about, so that both kinds can take the same rates (arXiv:2502.16982, 2.2).
UPDATE_RMS = 0.2


def matrix_axes(path: tuple[str, ...], leaf: Any) -> MuonDimensionNumbers | None:
    """The axes of inputs and of outputs of a parameter that is a matrix; None for any other.

    Matrices are the kernels of all products. Layers, and queries, keys and values, are matrices of their own; heads are
    a part of the outputs or inputs. Embedding and head of the decoder, learned positions and queries, norms, biases and
    low-rank adapters are none.
    """
    if path[-1] not in ("kernel", "proj"):
        return None
    axes = tuple(range(1 if "blocks" in path else 0, leaf.ndim))
    match path[-2]:
        case "qkv":
            return MuonDimensionNumbers(axes[:1], axes[2:])
        case "out" | "patch_embed":
            return MuonDimensionNumbers(axes[:-1], axes[-1:])
        case _:
            return MuonDimensionNumbers(axes[:1], axes[1:])


def scale_matrices(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients of matrices -> orthogonal updates with a root mean square of `UPDATE_RMS`, before decay and rate."""

    def axes_of(updates: Params) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: matrix_axes(path_of(path), leaf), updates)

    def match_adam(updates: Params, params: Params | None = None) -> Params:
        del params

        def scale(path: Any, leaf: jax.Array) -> jax.Array:
            sides = [math.prod(leaf.shape[axis] for axis in side) for side in matrix_axes(path_of(path), leaf) or ()]
            return UPDATE_RMS * max(sides) ** 0.5 * leaf

        return jax.tree_util.tree_map_with_path(scale, updates)

    momentum = scale_by_muon(
        ns_steps=config.muon_iterations,
        beta=config.muon_momentum,
        mu_dtype=config.first_moment_dtype,
        weight_dimension_numbers=axes_of,
    )
    return optax.chain(momentum, optax.stateless(match_adam))


def scale_by_muon_and(
    other: optax.GradientTransformation, config: OptimizerConfig
) -> optax.GradientTransformationExtraArgs:
    """`scale_matrices` for matrices, `other` for all other parameters."""

    def kinds(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "other" if matrix_axes(path_of(path), leaf) is None else "matrix", params
        )

    return optax.partition({"matrix": scale_matrices(config), "other": other}, kinds)
