"""A tiny model with noise on every parameter, saved as a checkpoint that can be evaluated."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from qwenvl_jax.checkpoint import imported
from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.models.qwen_vl import Params
from tests.support import tiny_run


@pytest.fixture(scope="session")
def config(tiny_data: Path) -> Config:
    return tiny_run.make_config(tiny_data)


@pytest.fixture(scope="session")
def tokenizer(config: Config) -> Tokenizer:
    return load_tokenizer(config.tokenizer)


@pytest.fixture(scope="session")
def params(config: Config) -> Params:
    rng = np.random.default_rng(3)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="session")
def loaded(params: Params, config: Config) -> LoadedModel:
    return LoadedModel(params, config.model, config.compute)


@pytest.fixture(scope="session")
def checkpoint(params: Params, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    imported.save_params(folder, params, config)
    return folder
