"""What is trained and what is only stored."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qwenvl_jax.config import COMPONENTS
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import component_of, flatten, merge, split
from qwenvl_jax.training.state import abstract_state
from tests.support import tiny_run


@pytest.mark.parametrize(
    "trainable", [("vit", "vit_head", "resampler"), COMPONENTS, ("resampler", "decoder"), ("decoder",)]
)
def test_halves_are_disjoint_and_merge_to_the_whole(trainable: tuple[str, ...]) -> None:
    params = qwen_vl.abstract_params(tiny_run.make_config().model)
    first, second = split(params, trainable)
    assert not flatten(first).keys() & flatten(second).keys()
    whole = merge(first, second)
    assert jax.tree_util.tree_all(jax.tree.map(lambda one, other: one == other, whole, params))
    assert flatten(whole) == flatten(params)
    assert {component_of(path) for path in flatten(first)} == set(trainable)


def test_position_table_is_frozen_even_when_everything_is_trained() -> None:
    params = qwen_vl.abstract_params(tiny_run.make_config().model)
    assert list(flatten(split(params, COMPONENTS)[1])) == [("resampler", "position_embedding")]


def test_fine_tuning_leaves_vit_head_frozen_unless_it_is_named() -> None:
    params = qwen_vl.abstract_params(tiny_run.make_config().model)
    assert ("vit", "proj") in flatten(split(params, ("resampler", "decoder"))[1])
    assert ("vit", "proj") in flatten(split(params, ("resampler", "decoder", "vit_head"))[0])


def test_frozen_weights_have_their_own_dtype_and_no_moments() -> None:
    config = tiny_run.make_config(train__trainable=("vit", "vit_head", "resampler"), compute__frozen_dtype="bfloat16")
    state = abstract_state(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {np.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {np.dtype("float32")}
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert kept == 2 * trained + 1  # two moments and one counter
