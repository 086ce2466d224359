"""A tiny model with noise on every parameter, and its release."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from qwenvl_jax.config import Config
from qwenvl_jax.conversion import released_config, to_torch, torch_model
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.models import qwen_vl
from tests.support import tiny_run

# transformers copies the code of a release into this folder and imports it from there. Every test process has its own,
# so that the user's is not touched.
_CODE_CACHE = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = _CODE_CACHE.name


@pytest.fixture(scope="session")
def config(tiny_data: Path) -> Config:
    """Images of 56 px on a 2 x 2 position table, so that both tables are interpolated; log-n and NTK beyond 32."""
    config = tiny_run.make_config(tiny_data, data__image_size=56)
    decoder = dataclasses.replace(config.model.decoder, train_length=32)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))


@pytest.fixture(scope="session")
def tokenizer(config: Config) -> Tokenizer:
    return load_tokenizer(config.tokenizer)


@pytest.fixture(scope="session")
def params(config: Config) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh)


@pytest.fixture(scope="session")
def released(params: dict[str, Any], config: Config, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """A release in several shards."""
    return to_torch.release(params, config, tmp_path_factory.mktemp("released") / "release", shard_bytes=60_000)


@pytest.fixture
def code_folder(tmp_path: Path) -> Path:
    """A folder with the code of a release. Its name is unique because transformers caches code by folder name."""
    folder = tmp_path / f"release_{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    for name in released_config.CODE_FILES:
        shutil.copy(Path(torch_model.__file__).parent / name, folder / name)
    return folder
