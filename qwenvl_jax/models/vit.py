"""The vision transformer, OpenCLIP ViT-bigG without class token and final norm, and the head after the resampler.

Shape suffixes: I images, H/W pixels (square), P patches, W also the tower's width where it comes last, Q queries,
N heads, K head size, F hidden width, D width of the decoder.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.config import VitConfig
from qwenvl_jax.models.attention import attention
from qwenvl_jax.models.layers import LayerNorm, Projection, named, resize_positions, scan_blocks
from qwenvl_jax.models.parallel import over_rows, product
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.rules import kernel_axes

# Mean and standard deviation of the RGB channels in [0, 1] that CLIP was trained with.
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def patches(images_IHWC: jax.Array, size: int) -> jax.Array:
    """Cuts images into patches: [I, H, W, 3] to [I, P, size * size * 3], row-major over the grid.

    Raises:
      UserError: if the images are not square or their side is no multiple of the patch size.
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
    scale, shift = np.tile(1 / (255 * PIXEL_STD), repeat), np.tile(PIXEL_MEAN / PIXEL_STD, repeat)
    return pixels.astype(jnp.float32) * scale - shift


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, neither tanh nor quick: in float32, rounded once to the dtype of `x`, as PyTorch does it.

    `jax.nn.gelu` rounds after every operation in bfloat16, and asks for erfc, whose two branches cost a TPU more than
    the matrix product that they are fused with.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


class PatchEmbed(nn.Module):
    """The convolution with stride = kernel = patch, as one matrix product; no bias."""

    size: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images_IHWC: jax.Array) -> jax.Array:
        """[I, H, W, 3] uint8 to [I, P, width]."""
        fan_in = 3 * self.size**2
        shape = (self.size, self.size, 3, self.width)
        kernel = self.param("kernel", nn.initializers.normal(fan_in**-0.5), shape, jnp.float32)
        # Cut while the pixels are bytes: a quarter of the memory to move.
        x_IPC = normalize_pixels(patches(images_IHWC, self.size)).astype(self.dtype)
        return x_IPC @ kernel.astype(self.dtype).reshape(fan_in, self.width)


class VitAttention(nn.Module):
    config: VitConfig
    dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, x_IPW: jax.Array, windowed: jax.Array | None) -> jax.Array:
        width, heads = self.config.width, self.config.heads
        size, std = width // heads, width**-0.5
        init, out_init = nn.initializers.normal(std), nn.initializers.normal(std * (2 * self.config.layers) ** -0.5)
        project = Projection((width,), (3, heads, size), self.dtype, init, unstack=True, name="qkv")
        qkv = tuple(named(part, "qkv") for part in project(x_IPW))
        if windowed is None:
            out_IPNK = self._attend(*qkv)
        else:
            out_IPNK = jax.lax.cond(windowed, self._attend_in_windows, self._attend, *qkv)
        project = Projection((heads, size), (width,), self.dtype, out_init, name="out")
        return named(project(out_IPNK), "attention_out")

    def _attend(self, q_IPNK: jax.Array, k_IPNK: jax.Array, v_IPNK: jax.Array) -> jax.Array:
        return attention(q_IPNK, k_IPNK, v_IPNK, implementation=self.implementation)

    def _attend_in_windows(self, *qkv_IPNK: jax.Array) -> jax.Array:
        window, (images, patches, *rest) = self.config.window, qkv_IPNK[0].shape
        grid = math.isqrt(patches)
        parts = grid // window

        def cut(x_IPNK: jax.Array) -> jax.Array:
            x = x_IPNK.reshape(images, parts, window, parts, window, *rest).swapaxes(2, 3)
            return x.reshape(images * parts**2, window**2, *rest)

        out = self._attend(*map(cut, qkv_IPNK))
        out = out.reshape(images, parts, parts, window, window, *rest).swapaxes(2, 3)
        return out.reshape(images, patches, *rest)


class VitMlp(nn.Module):
    config: VitConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_IPW: jax.Array) -> jax.Array:
        width, hidden = self.config.width, self.config.mlp_dim
        up_init = nn.initializers.normal((2 * width) ** -0.5)
        down_init = nn.initializers.normal((width * 2 * self.config.layers) ** -0.5)
        up_IPF = named(Projection((width,), (hidden,), self.dtype, up_init, name="up")(x_IPW), "mlp_up")
        return Projection((hidden,), (width,), self.dtype, down_init, name="down")(gelu(up_IPF))


class VitBlock(nn.Module):
    """Pre-norm block; shaped for `nn.scan`."""

    config: VitConfig
    dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, x_IPW: jax.Array, windowed: jax.Array | None) -> tuple[jax.Array, None]:
        eps = self.config.layer_norm_eps
        x_IPW = over_rows(x_IPW)
        x_IPW += VitAttention(self.config, self.dtype, self.implementation, name="attn")(
            LayerNorm(eps, name="ln_1")(x_IPW), windowed
        )
        x_IPW += VitMlp(self.config, self.dtype, name="mlp")(LayerNorm(eps, name="ln_2")(x_IPW))
        return x_IPW, None


class Vit(nn.Module):
    """The tower and, under the same name as in the release, the norm and projection that follow the resampler.

    Fresh weights follow CLIP: patches and attention inputs keep the variance (normal, fan-in^-0.5), outputs of the
    residual branches are scaled by (2 * layers)^-0.5, the hidden layer by (2 * width)^-0.5, positions and `proj` are
    normal with width^-0.5.

    Attributes:
      config: sizes of the tower.
      output_width: D, of `ln_post` and `proj`.
      dtype: compute dtype.
      implementation: of the attention.
      remat: policy of the blocks.
      unroll: whether the layers are written out instead of looped over.
    """

    config: VitConfig
    output_width: int
    dtype: Any
    implementation: str
    remat: str
    unroll: bool = False

    def setup(self) -> None:
        config = self.config
        self.patch_embed = PatchEmbed(config.patch_size, config.width, self.dtype)
        self.position_embedding = self.param(
            "position_embedding",
            nn.initializers.normal(config.width**-0.5),
            (config.position_grid**2, config.width),
            jnp.float32,
        )
        self.ln_pre = LayerNorm(config.layer_norm_eps)
        blocks = scan_blocks(VitBlock, config.layers, self.remat, 0, self.unroll)
        self.blocks = blocks(config, self.dtype, self.implementation)
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
        x_IPW += resize_positions(self.position_embedding, x_IPW.shape[1]).astype(self.dtype)
        return self.blocks(self.ln_pre(x_IPW), self._windowed(x_IPW.shape[1]))[0]

    def _windowed(self, patches: int) -> jax.Array | None:
        """[S] bool, the layers that attend within windows; None if no layer does."""
        config = self.config
        if not config.window or math.isqrt(patches) <= config.window:
            return None
        return (jnp.arange(config.layers) + 1) % config.global_every != 0

    def head(self, x_IQD: jax.Array) -> jax.Array:
        """`ln_post`, then `@ proj`: [I, Q, D] to [I, Q, D]."""
        return product(self.ln_post(over_rows(x_IQD)), self.proj.astype(self.dtype), 1, kernel_axes(("vit", "proj")))
