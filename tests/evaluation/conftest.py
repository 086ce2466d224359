"""A tiny model with noise on every parameter, saved as a checkpoint that can be evaluated."""

import dataclasses

import jax
import numpy as np
import pytest

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from tests.support import tiny_run


@pytest.fixture(scope="session")
def config(tiny_data):
    return tiny_run.make_config(tiny_data)


@pytest.fixture(scope="session")
def tokenizer(config):
    return load_tokenizer(config.tokenizer)


@pytest.fixture(scope="session")
def params(config):
    rng = np.random.default_rng(3)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh)


@pytest.fixture(scope="session")
def loaded(params, config):
    return LoadedModel(params, config.model, config.compute)


@pytest.fixture(scope="session")
def checkpoint(params, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    restore.save_params(folder, params, dataclasses.replace(config))
    return folder
