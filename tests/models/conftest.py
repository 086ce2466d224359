"""A model of the smallest sizes that still has every part, with no parameter at a value that hides a mistake."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qwenvl_jax.config import ComputeConfig, DecoderConfig, ModelConfig, ResamplerConfig, VitConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import Params

TRAIN_LENGTH = 16


@pytest.fixture(scope="session")
def model() -> ModelConfig:
    """Patches of 4 pixels on a 4 x 4 position grid, 9 queries, train length 16."""
    return ModelConfig(
        name="test",
        vit=VitConfig(width=24, layers=2, heads=3, mlp_dim=40, patch_size=4, position_grid=4, layer_norm_eps=1e-6),
        resampler=ResamplerConfig(query_grid=3, heads=2, layer_norm_eps=1e-6),
        decoder=DecoderConfig(
            vocab_size=61,
            width=32,
            layers=2,
            heads=4,
            mlp_dim=48,
            rope_base=10000.0,
            rms_norm_eps=1e-6,
            train_length=TRAIN_LENGTH,
            logn_attention=True,
            dynamic_ntk=True,
        ),
    )


@pytest.fixture(scope="session")
def compute() -> ComputeConfig:
    return ComputeConfig(
        compute_dtype="float32",
        frozen_dtype="float32",
        attention="xla",
        remat_vit="none",
        remat_decoder="none",
        unroll_layers=False,
        loss_chunk=64,
    )


@pytest.fixture(scope="session")
def fresh_params(model: ModelConfig) -> Params:
    return qwen_vl.init_params(model, jax.random.key(0))


@pytest.fixture(scope="session")
def params(fresh_params: Params) -> Params:
    """Fresh parameters plus noise: zero biases and unit norms would hide a forgotten one."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh_params)
