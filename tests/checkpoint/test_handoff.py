"""A stage that starts from a checkpoint of another model: which tensors are loaded, resized or fresh."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.checkpoint import handoff, lineage
from qwenvl_jax.checkpoint.restore import check_init, initial_params
from qwenvl_jax.config import Config
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.layers import resize_positions
from qwenvl_jax.params import flatten, flatten_paths, merge
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training import summary
from qwenvl_jax.training.state import abstract_state
from tests.checkpoint.saved_run import write_run
from tests.support import tiny_run


def with_model(config: Config, **changes: dict[str, Any]) -> Config:
    """The config with other values in its model, e.g. `decoder={"vocab_size": 500}`."""
    towers = {name: dataclasses.replace(getattr(config.model, name), **values) for name, values in changes.items()}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **towers))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, params: dict[str, Any]) -> Path:
    """A finished run; its parameters are `params` + 8."""
    run = tmp_path_factory.mktemp("source") / "run"
    write_run(run, tiny_run.make_config(train__steps=8), params, steps=(8,))
    return run


def bigger(source: Path, *, partial: bool) -> Config:
    """A config with a larger grid, more tokens and more queries that starts from `source`."""
    where: dict[str, Any] = {f"init__{tower}": str(source) for tower in ("vit", "resampler", "decoder")}
    config = tiny_run.make_config(init__partial=partial, **where)
    model = config.model
    return with_model(
        config,
        vit={"position_grid": model.vit.position_grid + 1},
        resampler={"query_grid": model.resampler.query_grid + 1},
        decoder={"vocab_size": model.decoder.vocab_size + 8},
    )


def test_another_model_is_refused_unless_asked_for(source: Path) -> None:
    with pytest.raises(UserError, match=r"is a checkpoint of another model: .* --config.init.partial"):
        check_init(bigger(source, partial=False))
    check_init(bigger(source, partial=True))


def test_how_fresh_weights_are_drawn_makes_no_other_model(source: Path) -> None:
    where: dict[str, Any] = {f"init__{tower}": str(source) for tower in ("vit", "resampler", "decoder")}
    fresh: dict[str, dict[str, Any]] = {"decoder": {"initializer_range": 0.5}, "vit": {"fresh_positions": "sincos"}}
    config = with_model(tiny_run.make_config(**where), **fresh)
    assert all(check_init(config).values())


def test_what_fits_is_loaded_and_the_rest_resized_or_fresh(source: Path, params: dict[str, Any], capsys: Any) -> None:
    config = bigger(source, partial=True)
    state = abstract_state(config, make_mesh(config.mesh))
    abstract = merge(state.trainable, state.frozen)
    starts = check_init(config)
    loaded = flatten_paths(initial_params(config, starts, abstract))
    fresh = flatten_paths(qwen_vl.init_params(config.model, jax.random.key(config.train.seed)))
    saved = flatten_paths(params)
    fits = {"/".join(path): fit.how for path, fit in handoff.fits_of(starts, abstract).items()}
    assert {name for name, how in fits.items() if how == handoff.RESIZED} == {
        "vit/position_embedding",
        "decoder/embedding",
        "decoder/lm_head",
    }
    assert {name for name, how in fits.items() if how == handoff.FRESH} >= {"resampler/query"}
    trained = tiny_run.make_config().train.trainable
    assert {"vit", "resampler", "decoder"} <= set(trained)
    for name, leaf in loaded.items():
        assert leaf.shape == fresh[name].shape
        if fits[name] == handoff.LOADED and not name.startswith("resampler/position"):
            np.testing.assert_array_equal(leaf, saved[name] + 8)
        elif fits[name] == handoff.FRESH:
            np.testing.assert_allclose(leaf, fresh[name], rtol=1e-6)
    table = saved["vit/position_embedding"] + 8
    patches = fresh["vit/position_embedding"].shape[0]
    np.testing.assert_allclose(loaded["vit/position_embedding"], resize_positions(table, patches), rtol=1e-5)
    tokens = saved["decoder/embedding"].shape[0]
    np.testing.assert_array_equal(loaded["decoder/embedding"][:tokens], saved["decoder/embedding"] + 8)
    np.testing.assert_allclose(loaded["decoder/embedding"][tokens:], fresh["decoder/embedding"][tokens:], rtol=1e-6)
    np.testing.assert_array_equal(loaded["decoder/lm_head"][:, :tokens], saved["decoder/lm_head"] + 8)

    summary.show_start(config, starts, abstract)
    said = capsys.readouterr().out
    assert "decoder/embedding" in said and "tokens copied" in said and "resized" in said


def test_the_lineage_has_tensors_code_and_data(tmp_path: Path, source: Path) -> None:
    config = tiny_run.make_config(init__vit=str(source))
    starts = check_init(config)
    shapes = qwen_vl.abstract_params(config.model)
    origins: dict[str, Any] = {
        name: start and lineage.origin_of(start.workdir, start.step, name) for name, start in starts.items()
    }
    fits = handoff.fits_of(starts, shapes)
    lineage.write(tmp_path, config, origins, data="0123", tensors=handoff.to_json(fits))
    noted = lineage.read_lineage(tmp_path)
    assert set(noted["tensors"]) == {"/".join(path) for path in flatten(shapes)}
    assert noted["tensors"]["vit/proj"] == "loaded" and noted["tensors"]["decoder/embedding"] == "fresh"
    assert noted["data"] == "0123" and noted["code"]["jax"] == jax.__version__
    parent = noted["components"]["vit"]["from"]
    assert parent["path"] == str(source) and parent["step"] == 8 and len(parent["config"]) == 12 and parent["code"]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_tokens_fit_in_both_directions(before: int, after: int) -> None:
    path = ("decoder", "lm_head")
    stored = np.random.default_rng(0).standard_normal((3, before), np.float32)
    fresh = jax.numpy.zeros((3, after))
    leaf = handoff.resized(path, stored, fresh)
    both = min(before, after)
    np.testing.assert_array_equal(leaf[:, :both], stored[:, :both])
    assert leaf.shape == (3, after) and not leaf[:, both:].any()
