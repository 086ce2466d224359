"""Norms, position tables and remat against torch and published values."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.models import layers, qwen_vl
from qwenvl_jax.models.vit import Vit
from qwenvl_jax.params import Params

RNG = np.random.default_rng(0)


def torch_resize(table: torch.Tensor, source: int, target: int) -> torch.Tensor:
    grid = table.reshape(1, source, source, -1).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return out.permute(0, 2, 3, 1).reshape(target * target, -1)


def test_bicubic_matrix_has_the_known_first_rows() -> None:
    matrix = layers.bicubic_matrix(16, 32)
    assert matrix.dtype == np.float32 and matrix.shape == (32, 16)
    np.testing.assert_array_equal(matrix[0, :3], [1.10546875, -0.10546875, 0])
    np.testing.assert_array_equal(matrix[1, :4], [0.7734375, 0.26171875, -0.03515625, 0])
    np.testing.assert_array_equal(matrix[2, :4], [0.2265625, 0.87890625, -0.10546875, 0])
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(16, 32), (4, 8), (4, 3), (3, 7), (5, 2), (4, 1), (1, 4)])
def test_resize_positions_equals_torch(source: int, target: int) -> None:
    table = RNG.normal(size=(source**2, 6)).astype(np.float32)
    ours = layers.resize_positions(jnp.asarray(table), target**2)
    np.testing.assert_allclose(ours, torch_resize(torch.from_numpy(table), source, target).numpy(), atol=5e-6)


def test_resize_positions_is_the_identity_on_equal_grids() -> None:
    table = jnp.asarray(RNG.normal(size=(16, 6)), jnp.bfloat16)
    out = layers.resize_positions(table, 16)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, table.astype(jnp.float32))


def test_resize_positions_passes_gradients_to_the_table() -> None:
    table = RNG.normal(size=(16, 3)).astype(np.float32)
    weight = RNG.normal(size=(49, 3)).astype(np.float32)
    ours = jax.grad(lambda t: jnp.sum(layers.resize_positions(t, 49) * weight))(jnp.asarray(table))
    theirs = torch.from_numpy(table).requires_grad_()
    (torch_resize(theirs, 4, 7) * torch.from_numpy(weight)).sum().backward()
    assert theirs.grad is not None
    np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-5)


def test_resize_positions_refuses_grids_that_are_not_square() -> None:
    with pytest.raises(ValueError, match="square"):
        layers.resize_positions(jnp.zeros((12, 2)), 16)


def test_sincos_encodes_the_column_first_and_in_blocks() -> None:
    grid, width = 16, 4096
    table = layers.sincos_positions(grid, width)
    assert table.shape == (256, 4096) and table.dtype == np.float32
    k = np.arange(1024)
    omega = 10000.0 ** (-k / 1024)
    for row, column in ((0, 0), (3, 5), (15, 2), (0, 15)):
        entry = table[row * grid + column]
        expected = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
        np.testing.assert_allclose(entry, np.concatenate(expected), atol=2e-6)


def test_layer_norm_equals_torch(model: ModelConfig) -> None:
    x = RNG.normal(size=(3, 5, 32)).astype(np.float32) * 4 + 2
    theirs = torch.nn.LayerNorm(32, eps=1e-6)
    scale, bias = RNG.normal(size=(2, 32)).astype(np.float32)
    theirs.weight.data, theirs.bias.data = torch.from_numpy(scale), torch.from_numpy(bias)
    norm: Any = layers.LayerNorm(1e-6)
    ours = norm.apply({"params": {"scale": scale, "bias": bias}}, jnp.asarray(x))
    np.testing.assert_allclose(ours, theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_rms_norm_casts_before_it_multiplies() -> None:
    x = torch.from_numpy(RNG.normal(size=(40, 64)).astype(np.float32)).bfloat16()
    weight = torch.from_numpy(RNG.normal(size=64).astype(np.float32)).bfloat16()
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    cast_first = (wide.bfloat16() * weight).float().numpy()
    cast_last = (wide * weight.float()).bfloat16().float().numpy()
    norm: Any = layers.RMSNorm(1e-6)
    ours = norm.apply(
        {"params": {"scale": jnp.asarray(weight.float().numpy())}}, jnp.asarray(x.float().numpy(), jnp.bfloat16)
    )
    assert ours.dtype == jnp.bfloat16
    ours = np.asarray(ours, np.float32)
    # rsqrt differs in its last bit between the two libraries, which now and then tips a rounding.
    assert np.mean(ours == cast_first) > 0.98 > np.mean(ours == cast_last)


def dot_products(jaxpr: Any) -> int:
    """Number of matrix products in a jaxpr, inner ones included."""
    inner = [v for e in jaxpr.eqns for v in jax.tree.leaves(list(e.params.values()), is_leaf=is_jaxpr) if is_jaxpr(v)]
    here = sum(e.primitive.name == "dot_general" for e in jaxpr.eqns)
    return here + sum(dot_products(getattr(j, "jaxpr", j)) for j in inner)


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def test_remat_policies_trade_recomputation_for_memory(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    """Counted on the gradient's program: each policy recomputes at least as much as the one before."""
    tokens_BL = jnp.zeros((1, 8), jnp.int32)

    def products(policy: str) -> int:
        settings = dataclasses.replace(compute, remat_vit=policy, remat_decoder=policy)

        def loss(tree: Params) -> jax.Array:
            hidden = qwen_vl.forward(
                tree,
                model,
                settings,
                tokens_BL=tokens_BL,
                segment_ids_BL=tokens_BL,
                positions_BL=tokens_BL,
                image_slot_BL=jnp.arange(8)[None],
                images_IHWC=jnp.zeros((1, 16, 16, 3), jnp.uint8),
            )
            return jnp.sum(hidden)

        return dot_products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

    counts = {policy: products(policy) for policy in ("none", "matmuls_saved", "attention_saved", "full")}
    # Per block, matmuls_saved repeats only q k^T (decoder and ViT: 1 each); attention_saved also q, k, v, out, up and
    # in the decoder gate; full also the product with the values.
    assert counts["matmuls_saved"] == counts["none"] + 2
    assert counts["attention_saved"] == counts["matmuls_saved"] + 5 + 6
    assert counts["full"] == counts["attention_saved"] + 2


def test_remat_does_not_change_gradients(model: ModelConfig, compute: ComputeConfig, params: Params) -> None:
    images = jnp.asarray(RNG.integers(0, 256, (1, 8, 8, 3)), jnp.uint8)

    def gradient(remat: str) -> Any:
        vit: Any = Vit(model.vit, model.decoder.width, dataclasses.replace(compute, remat_vit=remat))
        return jax.jit(jax.grad(lambda tree: jnp.sum(jnp.sin(vit.apply({"params": tree}, images)))))(params["vit"])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient("none"), gradient("matmuls_saved"))
