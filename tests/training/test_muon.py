"""Muon against its definition by singular values and against torch.optim.Muon, and what it leaves to Adam."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from qwenvl_jax.config import OptimizerConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import flatten, unflatten
from qwenvl_jax.training.muon import matrix_axes
from qwenvl_jax.training.optimizer import make_optimizer
from tests.support import tiny_run

RATE = 1e-2
CONFIG = OptimizerConfig(RATE, RATE, 0, 0.9, 0.98, 1e-6, 0.0, 1e9, 1.0, kind="muon")
STEPS = 40
CASCADE = (3.4445, -4.7750, 2.0315)  # of s, s^3 and s^5 (Jordan 2024)


def first_update(params: Any, gradients: Any, config: OptimizerConfig = CONFIG) -> dict[tuple[str, ...], np.ndarray]:
    optimizer = make_optimizer(config, STEPS, 2)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, step=0)
    return {path: np.asarray(leaf, np.float64) for path, leaf in flatten(updates).items()}


def by_singular_values(gradient: np.ndarray, iterations: int) -> np.ndarray:
    """The update of a matrix [in, out] by its definition, in float64."""
    left, values, right = np.linalg.svd(gradient, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(iterations):
        values = CASCADE[0] * values + CASCADE[1] * values**3 + CASCADE[2] * values**5
    return -RATE * 0.2 * math.sqrt(max(gradient.shape)) * (left * values) @ right


def random_tree(seed: int) -> Any:
    """Gradients of the tiny model's parameters."""
    rng = np.random.default_rng(seed)
    shapes = flatten(qwen_vl.abstract_params(tiny_run.make_config().model))
    return unflatten({path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in shapes.items()})


def matrices(path: tuple[str, ...], leaf: np.ndarray) -> list[np.ndarray]:
    """The matrices [in, out] of a kernel, by the shapes that the modules' docstrings give."""
    layers = list(leaf) if "blocks" in path else [leaf]
    if path[-2] == "qkv":  # [D, 3, heads, K]
        return [layer[:, part].reshape(len(layer), -1) for layer in layers for part in range(3)]
    if path[-2] in ("out", "patch_embed"):  # [heads, K, D], [rows, columns, 3, D]
        return [layer.reshape(-1, layer.shape[-1]) for layer in layers]
    return [layer.reshape(len(layer), -1) for layer in layers]


@pytest.mark.parametrize("iterations", [3, 5])
def test_every_kernel_moves_as_its_singular_values_say(iterations: int) -> None:
    gradients = random_tree(1)
    updates = first_update(random_tree(0), gradients, dataclasses.replace(CONFIG, muon_iterations=iterations))
    seen = 0
    for path, gradient in flatten(gradients).items():
        if path[-1] not in ("kernel", "proj"):
            continue
        for moved, matrix in zip(
            matrices(path, updates[path]), matrices(path, np.asarray(gradient, np.float64)), strict=True
        ):
            expected = by_singular_values(matrix, iterations)
            np.testing.assert_allclose(moved, expected, rtol=0, atol=2e-3 * RATE, err_msg=str(path))
            seen += 1
    assert seen > 20


def test_everything_else_moves_as_with_adamw() -> None:
    params, gradients = random_tree(0), random_tree(1)
    config = dataclasses.replace(CONFIG, weight_decay=0.05, clip_norm=1.0)
    muon = first_update(params, gradients, config)
    adamw = first_update(params, gradients, dataclasses.replace(config, kind="adamw"))
    others = {path for path in muon if path[-1] not in ("kernel", "proj")}
    assert {path[-1] for path in others} == {
        *("bias", "scale", "query", "position_embedding", "embedding", "lm_head"),
    }
    for path in others:
        np.testing.assert_array_equal(muon[path], adamw[path])
    assert not np.allclose(muon["vit", "proj"], adamw["vit", "proj"])


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_steps_equal_torch_muon(shape: tuple[int, int]) -> None:
    """Torch computes the cascade in bfloat16, so updates agree to a few hundredths of their length.

    Its momentum has no correction of its bias: steps are compared if that is gone.
    """
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape).astype(np.float32) for _ in range(STEPS)]
    config = dataclasses.replace(CONFIG, weight_decay=0.05, muon_momentum=0.7)
    params = {"resampler": {"kv_proj": {"kernel": jnp.zeros(shape)}}}
    optimizer = make_optimizer(config, STEPS, 1)
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.zeros(shape))
    peer = torch.optim.Muon([weight], lr=RATE, weight_decay=0.05, momentum=0.7, adjust_lr_fn="match_rms_adamw")
    for step, gradient in enumerate(gradients):
        ours = {"resampler": {"kv_proj": {"kernel": jnp.asarray(gradient)}}}
        updates, state = optimizer.update(ours, state, params, step=step)
        before = weight.detach().clone()
        weight.grad = torch.tensor(gradient)
        peer.step()
        if step >= 25:
            moved = np.asarray(updates["resampler"]["kv_proj"]["kernel"])
            expected = (weight.detach() - before).numpy()
            assert np.linalg.norm(moved - expected) < 0.05 * np.linalg.norm(expected)
        params = {"resampler": {"kv_proj": {"kernel": jnp.asarray(weight.detach().numpy())}}}
    assert optax.global_norm(params) > 0


def test_adapters_are_no_matrices_of_muon() -> None:
    leaf = jax.ShapeDtypeStruct((2, 8, 4), jnp.float32)
    for name in ("lora_a", "lora_b"):
        assert matrix_axes(("decoder", "blocks", "mlp", "up", name), leaf) is None
