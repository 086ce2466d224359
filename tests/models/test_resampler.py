"""The adapter against torch's MultiheadAttention and LayerNorms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.models.resampler import Resampler
from qwenvl_jax.params import Params

RNG = np.random.default_rng(0)


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32))


def torch_resampler(tree: Params, x: np.ndarray, heads: int, query_grid: int) -> torch.Tensor:
    width = tree["query"].shape[1]
    attn = tree["attn"]
    mha = torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
    names = ("query", "key", "value")
    state = {
        "in_proj_weight": torch.cat([tensor(attn[n]["kernel"]).reshape(width, width).T for n in names]),
        "in_proj_bias": torch.cat([tensor(attn[n]["bias"]).reshape(-1) for n in names]),
        "out_proj.weight": tensor(attn["out"]["kernel"]).reshape(width, width).T,
        "out_proj.bias": tensor(attn["out"]["bias"]),
    }
    mha.load_state_dict(state)

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(
            y, (width,), tensor(tree[name]["scale"]), tensor(tree[name]["bias"]), eps=1e-6
        )

    table = tensor(tree["position_embedding"])
    grid = int(x.shape[1] ** 0.5)
    coarse = table.reshape(1, query_grid, query_grid, width).permute(0, 3, 1, 2)
    fine = coarse
    if grid != query_grid:
        fine = torch.nn.functional.interpolate(coarse, (grid, grid), mode="bicubic", align_corners=False)
    fine = fine.permute(0, 2, 3, 1).reshape(grid * grid, width)
    y = norm("ln_kv", tensor(x) @ tensor(tree["kv_proj"]["kernel"]))
    query = norm("ln_q", tensor(tree["query"])) + table
    return mha(query.expand(len(x), -1, -1), y + fine, y)[0]


@pytest.mark.parametrize(("grid", "images"), [(3, 1), (4, 2), (8, 1)])
def test_resampler_equals_torch(
    model: ModelConfig, compute: ComputeConfig, params: Params, grid: int, images: int
) -> None:
    config, tree = model.resampler, params["resampler"]
    x = RNG.normal(size=(images, grid * grid, model.vit.width)).astype(np.float32)
    module: Any = Resampler(config, model.vit.width, model.decoder.width, compute)
    ours = jax.jit(lambda p, x: module.apply({"params": p}, x))(tree, x)
    with torch.no_grad():
        theirs = torch_resampler(tree, x, config.heads, config.query_grid)
    assert ours.shape == (images, config.queries, model.decoder.width)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5, rtol=1e-5)


def test_values_have_no_positions(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    """With one patch the attention is trivial, so the key's position must not matter at all."""
    tree = params["resampler"]
    module: Any = Resampler(model.resampler, model.vit.width, model.decoder.width, compute)
    x = jnp.asarray(RNG.normal(size=(1, 1, model.vit.width)), jnp.float32)
    moved = tree | {"position_embedding": tree["position_embedding"] + 3.0}
    np.testing.assert_allclose(module.apply({"params": tree}, x), module.apply({"params": moved}, x), atol=1e-6)
