"""The step on the tiny model: accumulation, freezing, the guard against non-finite batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import split
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import State, abstract_state
from qwenvl_jax.training.step import Metrics, TrainStep, make_train_step
from tests.support import tiny_run

ALL = ("vit", "vit_head", "resampler", "decoder")


def configure(trainable: tuple[str, ...] = ALL, **changes: Any) -> Config:
    changes = {"data__images_per_row": 2.0, "data__sequence_length": 24, **changes}
    return tiny_run.make_config(train__trainable=trainable, **changes)


def fresh_state(config: Config) -> State:
    params = qwen_vl.init_params(config.model, jax.random.key(1))
    trainable, frozen = split(params, config.train.trainable)
    frozen = jax.tree.map(lambda leaf: leaf.astype(config.compute.frozen_dtype), frozen)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    return State(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))


@functools.cache
def step_of(config: Config) -> TrainStep:
    mesh = make_mesh(config.mesh)
    return make_train_step(config, mesh, abstract_state(config, mesh))


def run(config: Config, batches: list[Any]) -> tuple[State, list[Metrics]]:
    state, metrics = fresh_state(config), []
    for batch in batches:
        state, one = step_of(config)(state, put_batch(batch, config.data, make_mesh(config.mesh)))
        metrics.append(one)
    return state, metrics


def test_accumulation_equals_one_big_batch() -> None:
    config = configure()
    batch = tiny_run.random_batch(config)
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, accumulation=1))
    big = tiny_run.regroup(batch, config.model.resampler.queries)
    state, metrics = run(config, [batch])
    big_state, big_metrics = run(whole, [big])
    for key in ("loss", "grad_norm", "learning_rate", "tokens", "supervised_tokens", "images", "skipped"):
        assert float(metrics[0][key]) == pytest.approx(float(big_metrics[0][key]), rel=2e-5), key
    # Moments, not parameters: a first Adam update has the size of the rate whatever the gradient is.
    for leaf, other in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(big_state.opt_state), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2e-3, atol=2e-7)
    assert int(metrics[0]["images"]) == 16
    assert int(metrics[0]["supervised_tokens"]) == int(batch.loss_mask.sum())


@pytest.mark.parametrize("groups", [1, 4, 0])
def test_loss_is_that_of_the_plain_model(groups: int) -> None:
    """Also with images that only rows of their own group may use: 0 makes a group of every row."""
    config = configure(data__image_groups=groups)
    batch, data = tiny_run.random_batch(config), config.data
    first_B = (
        np.arange(data.rows_per_microbatch) // data.group_rows * data.group_images * config.model.resampler.queries
    )
    slots_ABL = np.where(batch.image_slot >= 0, batch.image_slot + first_B[:, None], -1)
    assert len(np.unique(slots_ABL)) == 1 + data.image_budget * config.model.resampler.queries
    _, metrics = run(config, [batch])
    params = qwen_vl.init_params(config.model, jax.random.key(1))
    total, tokens = 0.0, 0.0
    for a in range(config.data.accumulation):
        hidden = qwen_vl.forward(
            params,
            config.model,
            config.compute,
            tokens_BL=batch.tokens[a],
            segment_ids_BL=batch.segment_ids[a],
            positions_BL=batch.positions[a],
            image_slot_BL=slots_ABL[a],
            images_IHWC=batch.images[a],
        )
        log_p = jax.nn.log_softmax(qwen_vl.logits(params, config.model, config.compute, hidden))
        picked = np.take_along_axis(np.asarray(log_p), batch.targets[a][..., None], axis=-1)[..., 0]
        total -= (picked * batch.loss_mask[a]).sum()
        tokens += batch.loss_mask[a].sum()
    assert float(metrics[0]["loss"]) == pytest.approx(total / tokens, rel=1e-5)


def test_stage_1_moves_what_it_trains_and_leaves_the_rest_bitwise() -> None:
    config = configure(("vit", "vit_head", "resampler"), compute__frozen_dtype="bfloat16")
    before = jax.tree.map(np.asarray, fresh_state(config))
    state, _ = run(config, [tiny_run.random_batch(config, seed) for seed in range(3)])
    for old, new in zip(jax.tree.leaves(before.frozen), jax.tree.leaves(state.frozen), strict=True):
        assert old.dtype == new.dtype and np.array_equal(old.view(np.uint16), np.asarray(new).view(np.uint16))
    for old, new in zip(jax.tree.leaves(before.trainable), jax.tree.leaves(state.trainable), strict=True):
        assert np.any(old != np.asarray(new))


def test_a_batch_that_is_not_finite_changes_nothing_but_the_step() -> None:
    config = configure()
    state = fresh_state(config)
    broken = state._replace(trainable=jax.tree.map(lambda leaf: leaf, state.trainable))
    broken.trainable["decoder"]["ln_f"]["scale"] = jnp.full_like(state.trainable["decoder"]["ln_f"]["scale"], jnp.nan)
    kept = jax.tree.map(np.asarray, broken)
    batch = put_batch(tiny_run.random_batch(config), config.data, make_mesh(config.mesh))
    after, metrics = step_of(config)(broken, batch)
    assert int(metrics["skipped"]) == 1 and int(after.step) == 1
    for old, new in zip(jax.tree.leaves(kept.opt_state), jax.tree.leaves(after.opt_state), strict=True):
        assert np.array_equal(old, new)
    for old, new in zip(jax.tree.leaves(kept.trainable), jax.tree.leaves(after.trainable), strict=True):
        assert np.array_equal(old, new, equal_nan=True)


def test_text_stage_needs_no_images() -> None:
    config = configure(("decoder",), data__images_per_row=0.0)
    batch = tiny_run.random_batch(config)
    state, metrics = run(config, [batch, batch])
    assert float(metrics[1]["loss"]) < float(metrics[0]["loss"])
    assert int(metrics[0]["images"]) == 0
    assert int(state.step) == 2
