"""The tower against the encoder layers of `transformers`' CLIP with torch's convolution and interpolation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder

from qwenvl_jax.config import ComputeConfig, ModelConfig, VitConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.vit import Vit, gelu, normalize_pixels, patches
from qwenvl_jax.params import Params
from qwenvl_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32))


def clip_encoder(config: VitConfig, tree: Params) -> Any:
    """The blocks of `tree["blocks"]` as CLIP layers; torch weights are out x in."""
    sizes: Any = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    encoder = CLIPEncoder(sizes).eval()
    blocks, state = tree["blocks"], {}
    for i in range(config.layers):
        block = jax.tree.map(lambda x, i=i: np.asarray(x[i]), blocks)
        attn, mlp = block["attn"], block["mlp"]
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            kernel = attn["qkv"]["kernel"][:, j].reshape(config.width, config.width)
            state[f"layers.{i}.self_attn.{name}.weight"] = kernel.T
            state[f"layers.{i}.self_attn.{name}.bias"] = attn["qkv"]["bias"][j].reshape(-1)
        state[f"layers.{i}.self_attn.out_proj.weight"] = attn["out"]["kernel"].reshape(config.width, config.width).T
        state[f"layers.{i}.self_attn.out_proj.bias"] = attn["out"]["bias"]
        for ours, theirs in (("up", "fc1"), ("down", "fc2")):
            state[f"layers.{i}.mlp.{theirs}.weight"] = mlp[ours]["kernel"].T
            state[f"layers.{i}.mlp.{theirs}.bias"] = mlp[ours]["bias"]
        for ours, theirs in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
            state[f"layers.{i}.{theirs}.weight"] = block[ours]["scale"]
            state[f"layers.{i}.{theirs}.bias"] = block[ours]["bias"]
    encoder.load_state_dict({name: tensor(value) for name, value in state.items()})
    return encoder


@pytest.mark.parametrize(("side", "images"), [(16, 1), (32, 2), (12, 3)])
def test_vit_equals_clip_layers(
    model: ModelConfig, compute: ComputeConfig, params: Params, side: int, images: int
) -> None:
    """On the stored grid, on twice the grid and on a smaller one."""
    config, tree = model.vit, params["vit"]
    pixels = RNG.integers(0, 256, (images, side, side, 3)).astype(np.uint8)
    vit: Any = Vit(config, model.decoder.width, compute)
    ours = jax.jit(lambda p, x: vit.apply({"params": p}, x))(tree, pixels)

    with torch.no_grad():
        theirs = clip_encoder(config, tree)(inputs_embeds=clip_embeddings(config, tree, pixels)).last_hidden_state
    grid = side // config.patch_size
    assert ours.shape == (images, grid * grid, config.width)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5, rtol=1e-5)


def clip_embeddings(config: VitConfig, tree: Params, pixels: np.ndarray) -> torch.Tensor:
    """[I, P, W] what the first block reads."""
    with torch.no_grad():
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - tensor(MEAN)[:, None, None]) / tensor(STD)[
            :, None, None
        ]
        weight = tensor(tree["patch_embed"]["kernel"]).permute(3, 2, 0, 1)
        x = torch.nn.functional.conv2d(x, weight, stride=config.patch_size).flatten(2).transpose(1, 2)
        table, grid = tensor(tree["position_embedding"]), pixels.shape[1] // config.patch_size
        table = table.reshape(1, config.position_grid, config.position_grid, -1).permute(0, 3, 1, 2)
        if grid != config.position_grid:
            table = torch.nn.functional.interpolate(table, (grid, grid), mode="bicubic", align_corners=False)
        x = x + table.permute(0, 2, 3, 1).reshape(grid * grid, -1)
        ln_pre = tree["ln_pre"]
        return torch.nn.functional.layer_norm(
            x, (config.width,), tensor(ln_pre["scale"]), tensor(ln_pre["bias"]), eps=1e-6
        )


@pytest.mark.parametrize(
    ("layers", "every", "remat", "unroll"),
    [(2, 2, "none", False), (2, 2, "full", True), (5, 2, "matmuls_saved", False), (2, 3, "attention_saved", False)],
)
def test_windows_see_their_own_patches_and_every_nth_layer_sees_all(
    model: ModelConfig, compute: ComputeConfig, layers: int, every: int, remat: str, unroll: bool
) -> None:
    """Features and gradients: each window goes alone through the CLIP layers that have windows."""
    deeper = dataclasses.replace(model, vit=dataclasses.replace(model.vit, layers=layers))
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32),
        qwen_vl.init_params(deeper, jax.random.key(0)),
    )
    config, tree = dataclasses.replace(deeper.vit, window=4, global_every=every), params["vit"]
    grid = 8
    pixels = RNG.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    vit: Any = Vit(config, model.decoder.width, dataclasses.replace(compute, remat_vit=remat, unroll_layers=unroll))

    def energy(p: Params) -> tuple[jax.Array, jax.Array]:
        features = vit.apply({"params": p}, pixels)
        return jnp.sum(features**2), features

    gradients, ours = jax.jit(jax.grad(energy, has_aux=True))(tree)

    encoder = clip_encoder(config, tree)
    x = clip_embeddings(config, tree, pixels)
    for number, layer in enumerate(encoder.layers, start=1):
        if number % every == 0:
            x = layer(x, attention_mask=None, causal_attention_mask=None)[0]
            continue
        rows = x.reshape(2, grid, grid, -1).split(4, dim=1)
        windows = [[part.reshape(2, 16, -1) for part in row.split(4, dim=2)] for row in rows]
        alone = [[layer(w, attention_mask=None, causal_attention_mask=None)[0] for w in row] for row in windows]
        joined = [torch.cat([w.reshape(2, 4, 4, -1) for w in row], dim=2) for row in alone]
        x = torch.cat(joined, dim=1).reshape(2, grid * grid, -1)
    np.testing.assert_allclose(ours, x.detach().numpy(), atol=1e-5, rtol=1e-5)
    (x**2).sum().backward()
    for number, layer in enumerate(encoder.layers):
        theirs = layer.mlp.fc1.weight.grad.T.numpy()
        kernel = gradients["blocks"]["mlp"]["up"]["kernel"][number]
        np.testing.assert_allclose(kernel, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-3)


def test_an_image_of_one_window_is_computed_as_without_windows(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    pixels = RNG.integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    both: list[Any] = [
        Vit(dataclasses.replace(model.vit, window=window), model.decoder.width, compute) for window in (0, 4)
    ]
    plain, windowed = (vit.apply({"params": params["vit"]}, pixels) for vit in both)
    np.testing.assert_array_equal(plain, windowed)


def test_gelu_rounds_once_like_torch() -> None:
    x = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16).astype(np.float32)
    x = x[np.abs(x) < 20]  # every bfloat16 between
    expected = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(gelu(jnp.asarray(x)), expected, atol=2e-6)
    ours = np.asarray(gelu(jnp.asarray(x, jnp.bfloat16)), np.float32)
    theirs = torch.nn.functional.gelu(torch.from_numpy(x).bfloat16()).float().numpy()
    assert np.mean(ours != theirs) < 0.002  # two erfs may differ in the last bit before they are rounded
    np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=1e-6)


def test_head_is_the_norm_then_the_product_with_proj(
    model: ModelConfig, compute: ComputeConfig, params: Params
) -> None:
    tree, width = params["vit"], model.decoder.width
    x = RNG.normal(size=(2, 9, width)).astype(np.float32)
    vit: Any = Vit(model.vit, width, compute)
    ours = vit.apply({"params": tree}, jnp.asarray(x), method=Vit.head)
    norm = tree["ln_post"]
    theirs = torch.nn.functional.layer_norm(
        tensor(x), (width,), tensor(norm["scale"]), tensor(norm["bias"]), eps=1e-6
    ) @ tensor(tree["proj"])
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_patches_are_row_major_with_the_channel_fastest() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 1, 2] = (7, 8, 9)  # upper right patch, second row, first column
    cut = np.asarray(patches(jnp.asarray(image), 2))
    assert cut.shape == (1, 4, 12)
    np.testing.assert_array_equal(cut[0, 1], [0] * 6 + [7, 8, 9] + [0] * 3)
    assert cut.sum() == 24


def test_pixels_are_normalised_like_clip() -> None:
    pixels = RNG.integers(0, 256, (5, 6)).astype(np.uint8)
    expected = (pixels.reshape(5, 2, 3) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalize_pixels(jnp.asarray(pixels)), expected.reshape(5, 6), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 16, 20, 3), (1, 18, 18, 3)])
def test_images_that_are_no_grid_are_a_clear_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="square grid of 4 pixel patches"):
        patches(jnp.zeros(shape, jnp.uint8), 4)


def test_fresh_sincos_positions_are_similar_if_patches_are_near(model: ModelConfig) -> None:
    config = dataclasses.replace(model, vit=dataclasses.replace(model.vit, fresh_positions="sincos"))
    table_PW = np.asarray(qwen_vl.init_params(config, jax.random.key(0))["vit"]["position_embedding"], np.float64)
    assert np.sqrt((table_PW**2).mean()) == pytest.approx(2**0.5)  # the patches have about 1
    # sin a sin b + cos a cos b = cos(a - b): similarity depends on how far two patches are apart, and on nothing else.
    columns_P, rows_P = (
        np.arange(len(table_PW)) % config.vit.position_grid,
        np.arange(len(table_PW)) // config.vit.position_grid,
    )
    frequencies = 1.6 * 20 ** -np.linspace(0, 1, config.vit.width // 4, endpoint=False)
    apart = [np.subtract.outer(axis_P, axis_P)[..., None] * frequencies for axis_P in (columns_P, rows_P)]
    np.testing.assert_allclose(table_PW @ table_PW.T, 4 * sum(np.cos(a).sum(axis=-1) for a in apart), atol=1e-4)
