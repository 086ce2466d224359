"""What a config accepts: every number has a range, and whatever is accepted gives finite shapes and rates."""

from __future__ import annotations

import copy
import dataclasses
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config, ModelConfig, from_config_dict, load_config, to_dict, validate
from qwenvl_jax.config.constraints import Range, fields_of
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import spare_images
from qwenvl_jax.training.optimizer import make_optimizer, make_schedule
from qwenvl_jax.training.state import abstract_state
from tests.support import tiny_config

TINY = tiny_config.get_config("data").to_dict()


def changed(**changes: Any) -> dict[str, Any]:
    """The tiny config's values; `changes` name keys as `optimizer__clip_norm=0.5`."""
    values = copy.deepcopy(TINY)
    for key, value in changes.items():
        *groups, name = key.split("__")
        node = values
        for group in groups:
            node = node[group]
        node[name] = value
    return values


def load(values: dict[str, Any]) -> Config:
    return load_config(values)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rows of image tasks without images": (dict(data__images_per_row=0.0), "taught without their pictures"),
    "sines and cosines of two axes in a width of 6": (
        dict(model__vit__width=6, model__vit__heads=2, model__vit__fresh_positions="sincos"),
        "config.model.vit: width 6 is no multiple of 4, as sincos needs",
    ),
    "gradients times nothing": (dict(optimizer__clip_norm=0.0), "clip_norm is 0.0; it must be more than 0"),
    "a beta above 1": (dict(optimizer__b1=1.5), "config.optimizer.b1 is 1.5; it must be at least 0 and less than 1"),
    "a beta of 1": (dict(optimizer__b2=1.0), "config.optimizer.b2 is 1.0"),
    "a negative eps": (dict(optimizer__eps=-1.0), "config.optimizer.eps is -1.0"),
    "an eps that float32 does not hold": (dict(optimizer__eps=1e-50), "config.optimizer.eps is 1e-50"),
    "a decay that grows": (dict(optimizer__weight_decay=-0.1), "config.optimizer.weight_decay must not be negative"),
    "a negative seed": (dict(data__seed=-1), "config.data.seed must not be negative"),
    "a seed of more than 32 bits": (dict(train__seed=2**32), "config.train.seed is 4294967296"),
    "no rate": (dict(optimizer__peak_learning_rate=0.0, optimizer__min_learning_rate=0.0), "peak_learning_rate is 0"),
    "a watchdog that is quicker than the first step": (
        dict(watchdog__first_step_seconds=10.0),
        "config.watchdog.first_step_seconds 10.0 must be at least config.watchdog.least_seconds 900.0",
    ),
    "a watchdog that ends every slow step": (
        dict(watchdog__factor=0.5),
        "config.watchdog.factor must be positive, not 0.5",
    ),
    "no number": (dict(optimizer__peak_learning_rate=math.nan), "config.optimizer.peak_learning_rate is nan"),
    "infinity": (dict(data__images_per_row=math.inf), "config.data.images_per_row is inf"),
    "a rate beyond float32": (dict(optimizer__peak_learning_rate=1e300), "peak_learning_rate is 1e+300"),
    "more digits than a float": (
        dict(optimizer__clip_norm=10**400),
        "config.optimizer.clip_norm must be float, not 1000",
    ),
    "a warm-up before the start": (dict(optimizer__warmup_steps=-1), "warmup_steps must not be negative"),
    "a share above 1": (dict(data__max_corrupt_share=1.5), "max_corrupt_share is 1.5"),
    "no layers": (dict(model__vit__layers=0), "config.model.vit.layers must be positive, not 0"),
    "no vocabulary": (dict(model__decoder__vocab_size=-5), "config.model.decoder.vocab_size must be positive"),
    "a logarithm of 0": (dict(model__decoder__train_length=1), "config.model.decoder.train_length is 1"),
    "no norm": (dict(model__vit__layer_norm_eps=0.0), "config.model.vit.layer_norm_eps is 0.0"),
    "a slip of the keyboard": (dict(data__sequence_length=2**40), "config.data.sequence_length is 1099511627776"),
    "no chunk": (dict(compute__loss_chunk=0), "config.compute.loss_chunk must be positive"),
    "no slice": (dict(mesh__slices=0), "config.mesh.slices must be positive"),
    "a step below the first": (dict(init__step=-2), "config.init.step is -2"),
    "nothing is checkpointed": (dict(train__keep_checkpoints=0), "config.train.keep_checkpoints must be positive"),
    "a component twice": (dict(train__trainable=("decoder", "decoder")), "names a component twice"),
    "an option without a name": (dict(compute__xla_options=("=1",)), "write name=value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_number_out_of_range_is_one_sentence(name: str) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(UserError) as error:
        load(changed(**changes))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": math.nan}, "mixture[0].weight is nan"),
        ({"weight": -1.0}, "must be positive"),
        ({"schedule": ((10.0, -1.0),)}, "has negative numbers"),
        ({"schedule": ((-1.0, 1.0),)}, "has negative numbers"),
        ({"schedule": ((10.0, math.inf),)}, "schedule[0][1] is inf"),
        ({"name": ""}, "lacks its name"),
        ({"records": ""}, "lacks its name or its records"),
    ],
)
def test_a_source_out_of_range_is_one_sentence(change: dict[str, Any], words: str) -> None:
    values = copy.deepcopy(TINY)
    values["data"]["mixture"][0].update(change)
    with pytest.raises(UserError) as error:
        load(values)
    assert words in str(error.value)


def test_rows_without_images_are_for_text_alone() -> None:
    values = changed(data__images_per_row=0.0, train__trainable=("decoder",))
    values["data"]["mixture"] = [source for source in values["data"]["mixture"] if source["task"] == "text"]
    assert load(values).data.images_per_row == 0
    values["train"]["trainable"] = ("decoder", "vit")
    with pytest.raises(UserError, match="nothing would train vit"):
        load(values)


def numbers_without_range(cls: type, path: str) -> list[str]:
    """The keys below a dataclass of the schema whose values are numbers of any size."""
    keys = []
    for name, (kind, constraints) in fields_of(cls).items():
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(kind):
            keys += numbers_without_range(typing.cast(type, kind), f"{path}.{name}")
        elif kind in (int, float) and not any(isinstance(constraint, Range) for constraint in constraints):
            keys.append(f"{path}.{name}")
    return keys


def test_every_number_of_the_schema_has_a_range() -> None:
    compared_by_their_class = {
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
        "data.mixture.weight",
        "evaluation.mixture.weight",
    }
    compared_by_their_class.add("watching.profile_steps")
    assert {key.lstrip(".") for key in numbers_without_range(Config, "")} == compared_by_their_class


NUMBERS = st.one_of(
    st.sampled_from([-(2**70), -1, 0, 1, 2, 3, 4, 6, 8, 12, 14, 16, 28, 32, 48, 56, 64, 2**31, 2**63, 10**400]),
    st.sampled_from([-math.inf, math.inf, math.nan, -1.0, -0.0, 5e-324, 1e-40, 1e-6, 0.5, 1.0, 2.5, 1e20, 1e39, 1e308]),
)
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    NUMBERS,
    NUMBERS,
    st.sampled_from(["", "float32", "splash", "vit", "text", "nonsense", True, None, (), ("decoder",), ((1.0, 2.0),)]),
    st.builds(dict),
)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values of a nested config, groups too."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return [leaf for key, value in items for leaf in ((*path, key), *leaves(value, (*path, key)))]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(leaves(TINY)), ANYTHING), min_size=1, max_size=3))
def test_any_config_is_refused_in_a_sentence_or_gives_finite_shapes_and_rates(changes: list[Any]) -> None:
    values = copy.deepcopy(TINY)
    values["data"]["mixture"] = [dict(source) for source in values["data"]["mixture"]]
    for path, value in changes:
        node = values
        for key in path[:-1]:
            try:
                node = node[key]
            except (LookupError, TypeError):  # an earlier change has replaced a group
                node = {}
        if isinstance(node, dict | list):
            try:
                node[path[-1]] = value
            except IndexError:
                continue
    try:
        config = load(values)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert from_config_dict(Config, to_dict(config)) == config
    data = config.data
    assert data.group_images >= 1 and data.image_budget < 2**50 and 0 <= spare_images(data, 8) < 8
    rates = make_schedule(config.optimizer, config.train.steps)(jnp.asarray([0, config.train.steps - 1]))
    assert jnp.isfinite(rates).all() and (rates >= 0).all()
    # Not beyond what a moment's arithmetic takes: the position table of the resampler is made in numpy.
    if config.model.decoder.width <= 2**12:
        assert all(size > 0 for leaf in jax.tree.leaves(abstract_state(config).trainable) for size in leaf.shape)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    leaf = {"decoder": {"lm_head": jnp.ones((2, 2))}}
    updates, _ = optimizer.update({"decoder": {"lm_head": jnp.full((2, 2), 3.0)}}, optimizer.init(leaf), leaf, step=0)
    assert jnp.isfinite(updates["decoder"]["lm_head"]).all()


def test_a_model_alone_is_checked_too() -> None:
    with pytest.raises(UserError, match=r"resampler\.query_grid must be positive"):
        model = {**TINY["model"], "resampler": dict(query_grid=0, heads=2, layer_norm_eps=1e-6)}
        validate(from_config_dict(ModelConfig, model), "config.model")
