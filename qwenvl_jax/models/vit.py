"""The vision transformer, OpenCLIP ViT-bigG without class token and final norm, and the head after the resampler.

Shape suffixes: I images, H/W pixels (square), P patches, W also the tower's width if it is the last axis, Q queries,
N heads, K head size, F hidden width, D width of the decoder.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import Scope

from qwenvl_jax.config import ComputeConfig, VitConfig
from qwenvl_jax.models.attention import attention
from qwenvl_jax.models.layers import LayerNorm, Projection, named, recomputed, resize_positions, scan_blocks
from qwenvl_jax.models.parallel import over_rows, product
from qwenvl_jax.params import Params
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.rules import kernel_axes

# Mean and standard deviation of the RGB channels in [0, 1] that CLIP was trained with.
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class BlockConfig(Protocol):
    """The sizes of the blocks of a transformer; see `VitConfig` for `window`."""

    @property
    def width(self) -> int:
        """Of the residual stream."""

    @property
    def layers(self) -> int:
        """Number of blocks."""

    @property
    def heads(self) -> int:
        """Attention heads."""

    @property
    def mlp_dim(self) -> int:
        """Hidden width."""

    @property
    def layer_norm_eps(self) -> float:
        """Of the norms."""

    @property
    def window(self) -> int:
        """Patches per side of a window; 0: no windows."""


def patches(images_IHWC: jax.Array, size: int) -> jax.Array:
    """Cuts images into patches: [I, H, W, 3] to [I, P, size * size * 3], row-major over the grid.

    Raises:
      UserError: if the images are not square or their side is not a multiple of the patch size.
    """
    count, height, width, channels = images_IHWC.shape
    if height != width or height % size:
        raise UserError(f"images of {width} x {height} pixels do not form a square grid of {size} pixel patches")
    grid = height // size
    x = images_IHWC.reshape(count, grid, size, grid, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, grid * grid, size * size * channels)


def normalize_pixels(pixels: jax.Array) -> jax.Array:
    """uint8 pixels [..., 3 * n] (channel fastest) to float32 with CLIP's mean and standard deviation."""
    repeat = pixels.shape[-1] // 3
    scale = np.tile(1 / (255 * PIXEL_STD), repeat)
    shift = np.tile(PIXEL_MEAN / PIXEL_STD, repeat)
    return pixels.astype(jnp.float32) * scale - shift


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (neither tanh nor quick), computed in float32 and rounded once to the dtype of `x`, as in PyTorch.

    In bfloat16 `jax.nn.gelu` rounds after every operation. It also uses erfc, whose two branches cost a TPU more than
    the matrix product that they are fused with.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), an approximation of the GELU that OpenAI's CLIP was trained with; rounded as `gelu`."""
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


class PatchEmbed(nn.Module):
    """The convolution with stride = kernel = patch, as one matrix product; no bias."""

    config: VitConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, images_IHWC: jax.Array) -> jax.Array:
        """[I, H, W, 3] uint8 to [I, P, width]."""
        size, width, dtype = self.config.patch_size, self.config.width, self.compute.compute_dtype
        fan_in = 3 * size**2
        kernel = self.param("kernel", nn.initializers.normal(fan_in**-0.5), (size, size, 3, width), jnp.float32)
        # Cut into patches before the conversion to floats: a quarter of the memory to move.
        x_IPC = normalize_pixels(patches(images_IHWC, size)).astype(dtype)
        return x_IPC @ kernel.astype(dtype).reshape(fan_in, width)


class VitAttention(nn.Module):
    """Self-attention of the patches of an image, over the whole image or within windows; or of the tokens of a text."""

    config: BlockConfig
    compute: ComputeConfig
    causal: bool = False

    @nn.compact
    def __call__(self, x_IPW: jax.Array, windowed: bool) -> jax.Array:
        """[I, P, W] to [I, P, W]; `windowed` says whether patches attend to those of their window alone."""
        config, dtype = self.config, self.compute.compute_dtype
        width, heads = (config.width,), (config.heads, config.width // config.heads)
        std = config.width**-0.5
        init = nn.initializers.normal(std)
        out_init = nn.initializers.normal(std * (2 * config.layers) ** -0.5)
        qkv = Projection(width, (3, *heads), dtype, init, unstack=True, name="qkv")
        out = Projection(heads, width, dtype, out_init, name="out")

        parts = tuple(named(part, "qkv") for part in qkv(x_IPW))
        out_IPNK = self._attend_in_windows(*parts) if windowed else self._attend(*parts)
        return named(out(out_IPNK), "attention_out")

    def _attend(self, q_IPNK: jax.Array, k_IPNK: jax.Array, v_IPNK: jax.Array) -> jax.Array:
        return attention(q_IPNK, k_IPNK, v_IPNK, causal=self.causal, implementation=self.compute.attention)

    def _attend_in_windows(self, *qkv_IPNK: jax.Array) -> jax.Array:
        window = self.config.window
        images, patches, *heads = qkv_IPNK[0].shape
        windows = math.isqrt(patches) // window  # along one side of the image

        def cut(x_IPNK: jax.Array) -> jax.Array:
            x = x_IPNK.reshape(images, windows, window, windows, window, *heads).swapaxes(2, 3)
            return x.reshape(images * windows**2, window**2, *heads)

        out = self._attend(*map(cut, qkv_IPNK))
        out = out.reshape(images, windows, windows, window, window, *heads).swapaxes(2, 3)
        return out.reshape(images, patches, *heads)


class VitMlp(nn.Module):
    """down(gelu(up(x))), with biases."""

    config: BlockConfig
    compute: ComputeConfig
    quick_gelu: bool = False

    @nn.compact
    def __call__(self, x_IPW: jax.Array) -> jax.Array:
        """[I, P, W] to [I, P, W] in the compute dtype."""
        config, dtype = self.config, self.compute.compute_dtype
        width, hidden = (config.width,), (config.mlp_dim,)
        up_init = nn.initializers.normal((2 * config.width) ** -0.5)
        down_init = nn.initializers.normal((config.width * 2 * config.layers) ** -0.5)
        activation = quick_gelu if self.quick_gelu else gelu
        up_IPF = named(Projection(width, hidden, dtype, up_init, name="up")(x_IPW), "mlp_up")
        return Projection(hidden, width, dtype, down_init, name="down")(activation(up_IPF))


class VitBlock(nn.Module):
    """Pre-norm block, in the form that `nn.scan` wants; the towers of CLIP have the same one."""

    config: BlockConfig
    compute: ComputeConfig
    causal: bool = False
    quick_gelu: bool = False

    @nn.compact
    def __call__(self, x_IPW: jax.Array, windowed: bool | None) -> tuple[jax.Array, None]:
        """[I, P, W] to [I, P, W], and no output per layer; see `VitAttention` for `windowed` (None: False)."""
        eps = self.config.layer_norm_eps
        x_IPW = over_rows(x_IPW)
        attn = VitAttention(self.config, self.compute, self.causal, name="attn")
        mlp = VitMlp(self.config, self.compute, self.quick_gelu, name="mlp")
        x_IPW += attn(LayerNorm(eps, name="ln_1")(x_IPW), bool(windowed))
        x_IPW += mlp(LayerNorm(eps, name="ln_2")(x_IPW))
        return x_IPW, None


def _sincos(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """A position table [grid^2, width] of sines and cosines, columns in the first half, rows in the second.

    It is as large as the patches (root mean square 1.4) and tells neighbours apart: its angles grow from patch to patch
    by 1.6 at the highest frequency, by a twentieth of that at the lowest.
    """
    del key
    quarter = shape[1] // 4
    grid = math.isqrt(shape[0])
    angles_GK = np.arange(grid)[:, None] * 1.6 / 20 ** (np.arange(quarter) / quarter)
    axis_GD = np.concatenate([np.sin(angles_GK), np.cos(angles_GK)], axis=1)
    table = np.concatenate([np.tile(axis_GD, (grid, 1)), np.repeat(axis_GD, grid, axis=0)], axis=1)
    return jnp.asarray(2 * table, dtype)


class Vit(nn.Module):
    """The tower and, under the same name as in the release, the norm and projection that follow the resampler.

    Fresh weights follow CLIP: patches and attention inputs keep the variance (normal, fan-in^-0.5), outputs of the
    residual branches are scaled by (2 * layers)^-0.5, the hidden layer by (2 * width)^-0.5, `proj` is normal with
    width^-0.5, and so are positions unless `config.fresh_positions` says otherwise.

    Attributes:
      config: sizes of the tower.
      output_width: D, of `ln_post` and `proj`.
      compute: dtype, remat and attention; the attention is not `auto`.
    """

    config: VitConfig
    output_width: int
    compute: ComputeConfig

    def setup(self) -> None:
        """Declares parameters and blocks."""
        config, compute = self.config, self.compute
        self.patch_embed = PatchEmbed(config, compute)
        self.position_embedding = self.param(
            "position_embedding",
            _sincos if config.fresh_positions == "sincos" else nn.initializers.normal(config.width**-0.5),
            (config.position_grid**2, config.width),
            jnp.float32,
        )
        self.ln_pre = LayerNorm(config.layer_norm_eps)
        blocks = scan_blocks(VitBlock, config.layers, compute.remat_vit, 0, compute.unroll_layers)
        self.blocks = blocks(config, compute)
        self.ln_post = LayerNorm(config.layer_norm_eps)
        self.proj = self.param(
            "proj",
            nn.initializers.normal(self.output_width**-0.5),
            (self.output_width, self.output_width),
            jnp.float32,
        )

    def __call__(self, images_IHWC: jax.Array) -> jax.Array:
        """Encodes square RGB images, uint8 [I, H, H, 3], to [I, P, W] in the compute dtype.

        Positions are added before `ln_pre`, and no norm follows the last block (released visual.py).
        """
        x_IPW = self.patch_embed(images_IHWC)
        x_IPW += resize_positions(self.position_embedding, x_IPW.shape[1]).astype(self.compute.compute_dtype)
        x_IPW = self.ln_pre(x_IPW)
        side = math.isqrt(x_IPW.shape[1])
        if not any(self.config.windowed_layers(side)):
            return self.blocks(x_IPW, None)[0]
        return self._blocks_in_windows(x_IPW, self.config.windowed_layers(side))

    def _blocks_in_windows(self, x_IPW: jax.Array, windowed_S: tuple[bool, ...]) -> jax.Array:
        """As `self.blocks`, of which some layers attend within windows.

        One step of the loop is `global_every` layers, so that it is known of each of them whether it has windows. If
        the loop decided that layer by layer, the devices would keep for the backward pass what either case needs.
        """
        config, compute = self.config, self.compute
        every = config.global_every
        periods = config.layers // every
        path = (*self.path, "blocks")

        def layer(x_IPW: jax.Array, params: Params, windowed: bool) -> jax.Array:
            scope = Scope({"params": params}, path=path)
            block = VitBlock(config, compute, parent=None, name="blocks").clone(parent=scope)
            return block(x_IPW, windowed)[0]

        def layers(x_IPW: jax.Array, params_S: Params, windowed_S: tuple[bool, ...]) -> jax.Array:
            run = recomputed(layer, compute.remat_vit, static_argnums=2)
            for index, windowed in enumerate(windowed_S):
                x_IPW = run(x_IPW, jax.tree.map(lambda leaf, index=index: leaf[index], params_S), windowed)
            return x_IPW

        def period(x_IPW: jax.Array, params_S: Params) -> tuple[jax.Array, None]:
            return layers(x_IPW, params_S, windowed_S[:every]), None

        stacked: Params = self.variables["params"]["blocks"]
        rest = periods * every  # the first of the layers that make no whole period
        if periods:
            grouped = jax.tree.map(lambda leaf: leaf[:rest].reshape(periods, every, *leaf.shape[1:]), stacked)
            x_IPW, _ = jax.lax.scan(period, x_IPW, grouped, unroll=periods if compute.unroll_layers else 1)
        return layers(x_IPW, jax.tree.map(lambda leaf: leaf[rest:], stacked), windowed_S[rest:])

    def head(self, x_IQD: jax.Array) -> jax.Array:
        """`ln_post`, then `@ proj`: [I, Q, D] to [I, Q, D]."""
        x_IQD = self.ln_post(over_rows(x_IQD))
        return product(x_IQD, self.proj.astype(self.compute.compute_dtype), 1, kernel_axes(("vit", "proj")))
