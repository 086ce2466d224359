"""Runs of earlier versions, whose configs spell keys by their former names, go on and can be evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwenvl_jax.checkpoint.layout import CONFIG
from qwenvl_jax.checkpoint.starting_point import find_starting_point
from qwenvl_jax.config import FORMER_KEYS, Config, from_config_dict, to_dict
from qwenvl_jax.evaluation import placement
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.loop import train
from tests.checkpoint.saved_run import assert_same_run
from tests.support import tiny_run


def with_former_names(values: dict) -> dict:
    """The values of a config by the names that earlier versions wrote."""
    former = {now: then for then, now in FORMER_KEYS.items()}
    return {
        former.get(key, key): with_former_names(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def test_a_run_of_an_earlier_version_goes_on_and_is_evaluated(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_run.make_config(tiny_data, train__steps=4, train__checkpoint_every=2, optimizer__warmup_steps=1)
    whole, earlier = tmp_path / "whole", tmp_path / "earlier"
    assert train(config, whole) == 4
    shutil.copytree(whole, earlier)
    shutil.rmtree(earlier / "checkpoints" / "4")
    values = with_former_names(json.loads((earlier / CONFIG).read_text()))
    assert values["data"]["global_batch_size"] == 8 and "rows_per_step" not in values["data"]
    (earlier / CONFIG).write_text(json.dumps(values))

    assert train(config, earlier) == 4
    assert_same_run(whole, earlier, 4)

    source = find_starting_point(earlier)
    assert source.config == config
    assert set(placement.load(source).params) == {"vit", "resampler", "decoder"}


def test_a_config_does_not_take_both_names(tiny_data: Path) -> None:
    values = to_dict(tiny_run.make_config(tiny_data))
    values["data"]["global_batch_size"] = 16
    with pytest.raises(UserError, match="rows_per_step twice, also by its former name 'global_batch_size'"):
        from_config_dict(Config, values)
