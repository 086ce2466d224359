"""The optimiser against torch.optim.AdamW, the schedule's milestones, the layer-wise rates."""

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
from qwenvl_jax.training.optimizer import layer_scales, make_optimizer, make_schedule

CONFIG = OptimizerConfig(
    peak_learning_rate=1e-2,
    min_learning_rate=1e-4,
    warmup_steps=5,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    weight_decay=0.05,
    clip_norm=1.0,
    vit_layer_decay=0.95,
)
STEPS = 30


def rate(update: int) -> float:
    """The rate of update 1..STEPS, written down a second time."""
    if update <= CONFIG.warmup_steps:
        return CONFIG.peak_learning_rate * update / CONFIG.warmup_steps
    share = (update - CONFIG.warmup_steps) / (STEPS - CONFIG.warmup_steps)
    low, high = CONFIG.min_learning_rate, CONFIG.peak_learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def test_the_vocabulary_has_a_rate_of_its_own() -> None:
    leaves = {"embedding": jnp.ones((3, 2)), "lm_head": jnp.ones((2, 3)), "blocks": {"kernel": jnp.ones((2, 2))}}
    params = {"decoder": leaves, "vit": {"proj": jnp.ones((2, 2))}}
    gradients = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), params)

    def update_of(rate: float) -> Any:
        optimizer = make_optimizer(dataclasses.replace(CONFIG, vocabulary_rate=rate), STEPS, 2)
        return optimizer.update(gradients, optimizer.init(params), params, step=3)[0]

    plain, slower = update_of(1.0), update_of(0.25)
    for name in ("embedding", "lm_head"):
        np.testing.assert_array_equal(slower["decoder"][name], 0.25 * plain["decoder"][name])
    np.testing.assert_array_equal(slower["decoder"]["blocks"]["kernel"], plain["decoder"]["blocks"]["kernel"])
    np.testing.assert_array_equal(slower["vit"]["proj"], plain["vit"]["proj"])


def test_schedule() -> None:
    schedule = make_schedule(CONFIG, STEPS)
    assert [float(schedule(n - 1)) for n in range(1, STEPS + 1)] == pytest.approx(
        [rate(n) for n in range(1, STEPS + 1)], rel=1e-5
    )
    assert float(schedule(STEPS - 1)) == pytest.approx(CONFIG.min_learning_rate)
    assert float(schedule(CONFIG.warmup_steps - 1)) == pytest.approx(CONFIG.peak_learning_rate)


def test_schedule_without_warmup_starts_below_the_peak_and_never_divides_by_zero() -> None:
    schedule = make_schedule(dataclasses.replace(CONFIG, warmup_steps=0), 2)
    assert float(schedule(0)) == pytest.approx((CONFIG.peak_learning_rate + CONFIG.min_learning_rate) / 2)


def test_thirty_steps_equal_torch_adamw() -> None:
    rng = np.random.default_rng(0)
    start = {"lm_head": rng.normal(size=(6, 5)), "scale": rng.normal(size=6), "bias": rng.normal(size=(2, 3))}
    target = {name: rng.normal(size=value.shape) * 3 for name, value in start.items()}

    params = {"decoder": {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}}
    optimizer = make_optimizer(CONFIG, STEPS, vit_layers=2)
    state = optimizer.init(params)
    for step in range(STEPS):
        gradients = {"decoder": {name: value - target[name] for name, value in params["decoder"].items()}}
        gradients["decoder"] = {name: jnp.asarray(value, jnp.float32) for name, value in gradients["decoder"].items()}
        updates, state = optimizer.update(gradients, state, params, step=jnp.asarray(step))
        params = optax.apply_updates(params, updates)

    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    peer = torch.optim.AdamW(
        [
            {"params": [weights["lm_head"]], "weight_decay": CONFIG.weight_decay},
            {"params": [weights["scale"], weights["bias"]], "weight_decay": 0.0},
        ],
        betas=(CONFIG.b1, CONFIG.b2),
        eps=CONFIG.eps,
    )
    for step in range(STEPS):
        for name, weight in weights.items():
            weight.grad = (weight - torch.tensor(target[name])).detach()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), CONFIG.clip_norm)
        for group in peer.param_groups:
            group["lr"] = rate(step + 1)
        peer.step()
    for name, weight in weights.items():
        np.testing.assert_allclose(params["decoder"][name], weight.detach().numpy(), rtol=0, atol=1e-6)


def test_every_vit_block_moves_by_its_own_rate() -> None:
    layers = 4
    ones = jnp.ones((layers, 3, 2))
    params = {
        "vit": {
            "patch_embed": {"kernel": ones},
            "position_embedding": jnp.ones((layers, 2)),
            "ln_pre": {"scale": jnp.ones(3)},
            "blocks": {"mlp": {"up": {"kernel": ones, "bias": jnp.ones((layers, 2))}}},
            "ln_post": {"scale": jnp.ones(3)},
            "proj": jnp.ones((2, 2)),
        },
        "resampler": {"query": jnp.ones((2, 2))},
        "decoder": {"lm_head": jnp.ones((2, 2))},
    }
    config = dataclasses.replace(CONFIG, weight_decay=0.0)
    optimizer = make_optimizer(config, STEPS, layers)
    # Adam makes every first update equally big, whatever the gradient: what differs is the layer's rate.
    updates, _ = optimizer.update(params, optimizer.init(params), params, step=jnp.asarray(4))
    moved = {
        "blocks": -updates["vit"]["blocks"]["mlp"]["up"]["kernel"][:, 0, 0] / config.peak_learning_rate,
        "bias": -updates["vit"]["blocks"]["mlp"]["up"]["bias"][:, 0] / config.peak_learning_rate,
    }
    expected = [0.95**3, 0.95**2, 0.95, 1.0]
    np.testing.assert_allclose(moved["blocks"], expected, rtol=1e-4)
    np.testing.assert_allclose(moved["bias"], expected, rtol=1e-4)
    below = updates["vit"]["patch_embed"]["kernel"], updates["vit"]["position_embedding"], updates["vit"]["ln_pre"]
    for leaf in (below[0], below[1], below[2]["scale"]):
        np.testing.assert_allclose(-leaf / config.peak_learning_rate, 0.95**4, rtol=1e-4)
    above = (
        updates["vit"]["proj"],
        updates["vit"]["ln_post"]["scale"],
        updates["resampler"]["query"],
        updates["decoder"]["lm_head"],
    )
    for leaf in above:
        np.testing.assert_allclose(-leaf / config.peak_learning_rate, 1.0, rtol=1e-4)


def test_layer_decay_scales_weight_decay_too() -> None:
    params = {"vit": {"blocks": {"mlp": {"up": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}}}}}
    zeros = {"vit": {"blocks": {"mlp": {"up": {"kernel": jnp.zeros((2, 3, 3)), "bias": jnp.zeros((2, 3))}}}}}
    optimizer = make_optimizer(CONFIG, STEPS, 2)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, step=jnp.asarray(4))
    leaf = updates["vit"]["blocks"]["mlp"]["up"]
    shrink = CONFIG.peak_learning_rate * CONFIG.weight_decay
    np.testing.assert_allclose(-leaf["kernel"][:, 0, 0], [shrink * 0.95, shrink], rtol=1e-5)
    assert not np.any(leaf["bias"])  # biases are not decayed


def test_layer_scales_of_the_paper() -> None:
    scales = layer_scales(0.95, 48)
    assert scales.shape == (48,) and scales[-1] == 1.0
    np.testing.assert_allclose(scales[0], 0.95**47, rtol=1e-6)


def test_a_first_moment_in_bfloat16_changes_little() -> None:
    """bfloat16 has eight bits: the update of a step differs by less than a hundredth of the rate."""
    rng = np.random.default_rng(0)
    params = {"decoder": {"ln_f": {"scale": jnp.asarray(rng.normal(size=200), jnp.float32)}}}
    moved = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(dataclasses.replace(CONFIG, first_moment_dtype=dtype), STEPS, 1)
        state, now = optimizer.init(params), params
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state[1].mu)} == {dtype}
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state[1].nu)} == {"float32"}
        for step in range(8):
            gradients = {"decoder": {"ln_f": {"scale": jnp.asarray(rng.normal(size=200), jnp.float32)}}}
            updates, state = optimizer.update(gradients, state, now, step=step)
            now = optax.apply_updates(now, updates)
        moved[dtype] = np.asarray(now["decoder"]["ln_f"]["scale"])
        rng = np.random.default_rng(0)
        rng.normal(size=200)
    difference = np.abs(moved["float32"] - moved["bfloat16"]).max()
    assert 0 < difference < 8 * 0.01 * CONFIG.peak_learning_rate
