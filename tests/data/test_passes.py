"""Samples per row and samples by source, from which a run computes its passes."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_jax.auditing.samples import audit
from qwenvl_jax.config import Config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.tokenizer import Tokenizer
from tests.data.record_samples import with_data


@pytest.mark.parametrize("streams", [range(4), range(1), range(1, 3)])
def test_samples_per_row_are_those_of_the_batches(run_config: Config, tokenizer: Tokenizer, streams: range) -> None:
    """Whichever streams a process builds."""
    config = with_data(run_config, rows_per_step=16, streams=4, image_groups=4, packing_window=2)
    with make_loader(config, tokenizer, streams=streams) as loader:
        assert loader.samples_per_row == 0
        batches = [next(loader) for _ in range(3)]
        segments = np.concatenate([batch.segment_ids.reshape(-1, config.data.sequence_length) for batch in batches])
        assert loader.samples_per_row == pytest.approx(segments.max(1).mean())
        assert loader.samples == {source.name: 23 for source in config.data.mixture}


def test_the_audit_says_how_often_sources_are_read(run_config: Config, tokenizer: Tokenizer) -> None:
    numbers = audit(run_config, 400, 0).numbers
    passes = numbers["passes"]
    drawn = run_config.train.steps * run_config.data.rows_per_step * passes["samples_per_row"]
    assert passes["sources"]["all sources"] == {
        "samples": round(drawn),
        "passes": pytest.approx(drawn / (23 * len(run_config.data.mixture))),
    }
    weights = {source.name: source.weight for source in run_config.data.mixture}
    for name, weight in weights.items():
        expected = drawn * weight / sum(weights.values()) / 23
        assert passes["sources"][name]["passes"] == pytest.approx(expected)
    one_pass = with_data(run_config, rows_per_step=2 * passes["rows_per_step_of_one_pass"])
    again = audit(one_pass, 400, 0).numbers["passes"]
    assert again["sources"]["all sources"]["passes"] / 2 == pytest.approx(1, rel=0.2)
    assert (passes["warning"] != "") == any(one["passes"] > 2 for one in passes["sources"].values())
    assert (passes["warning"] != "") == any("rows per step make one pass" in note for note in numbers["notes"])


def test_an_audit_that_fills_no_group_says_nothing_of_passes(run_config: Config) -> None:
    assert audit(run_config, 1, 0).numbers["passes"] is None
