"""CLIP as OpenCLIP has it, as pure functions of a parameter tree with the keys `vision` and `text`.

params = init_params(CLIP_MODELS["ViT-B-32"], key)         # or conversion.from_openclip.load_clip
similarity = encode_images(params, config, compute, pixels) @ encode_texts(params, config, compute, tokens).T

The blocks are those of `models.vit`. Qwen-VL's own tower lacks CLIP's class token, output norm and projection.

Shape suffixes: I images, H/W pixels (square), P patches, W width of the vision tower, T texts, L tokens, E width of the
embeddings that images and texts share.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwenvl_jax.config import ComputeConfig, VitConfig
from qwenvl_jax.models.clip_text import ClipText, ClipTextConfig
from qwenvl_jax.models.layers import LayerNorm, scan_blocks
from qwenvl_jax.models.qwen_vl import INITIALISATION
from qwenvl_jax.models.vit import PatchEmbed, VitBlock
from qwenvl_jax.params import Params


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The architecture. `quick_gelu` is how OpenAI's weights, and those trained further from them, were trained."""

    vision: VitConfig
    text: ClipTextConfig
    embed_dim: int
    quick_gelu: bool = False

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.vision.patch_size * self.vision.position_grid


def _config(
    patch_size: int,
    vision: tuple[int, int, int, int],
    text: tuple[int, int, int],
    embed_dim: int,
    image_size: int = 224,
) -> ClipConfig:
    """`vision` is (width, layers, heads, MLP width), `text` is (width, layers, heads)."""
    width, layers, heads, mlp_dim = vision
    text_width, text_layers, text_heads = text
    return ClipConfig(
        VitConfig(
            width=width,
            layers=layers,
            heads=heads,
            mlp_dim=mlp_dim,
            patch_size=patch_size,
            position_grid=image_size // patch_size,
            layer_norm_eps=1e-5,
        ),
        ClipTextConfig(width=text_width, layers=text_layers, heads=text_heads, mlp_dim=4 * text_width),
        embed_dim,
    )


_PLAIN = {
    "ViT-B-32": _config(32, (768, 12, 12, 3072), (512, 12, 8), 512),
    "ViT-B-16": _config(16, (768, 12, 12, 3072), (512, 12, 8), 512),
    "ViT-L-14": _config(14, (1024, 24, 16, 4096), (768, 12, 12), 768),
    "ViT-L-14-336": _config(14, (1024, 24, 16, 4096), (768, 12, 12), 768, image_size=336),
    "ViT-H-14": _config(14, (1280, 32, 16, 5120), (1024, 24, 16), 1024),
    "ViT-bigG-14": _config(14, (1664, 48, 16, 8192), (1280, 32, 20), 1280),
}

# By OpenCLIP's names. A checkpoint does not say whether it was trained with `quick_gelu`; OpenAI's were.
CLIP_MODELS: dict[str, ClipConfig] = _PLAIN | {
    f"{name}-quickgelu": dataclasses.replace(config, quick_gelu=True)
    for name, config in _PLAIN.items()
    if name != "ViT-bigG-14"
}


class ClipVision(nn.Module):
    """The vision tower: class token, blocks, norm and projection of the class token.

    Attributes:
      config: sizes of the tower; `position_grid` fits the images.
      output_width: E.
      quick_gelu: whether the blocks use `quick_gelu`.
      compute: dtype and attention.
    """

    config: VitConfig
    output_width: int
    quick_gelu: bool
    compute: ComputeConfig

    @nn.compact
    def __call__(self, images_IHWC: jax.Array) -> jax.Array:
        """uint8 [I, H, H, 3] to [I, E] in the compute dtype, not normalised."""
        config = self.config
        compute = self.compute
        dtype = compute.compute_dtype
        init = nn.initializers.normal(config.width**-0.5)
        class_W = self.param("class_embedding", init, (config.width,), jnp.float32)
        positions_PW = self.param("position_embedding", init, (config.position_grid**2 + 1, config.width), jnp.float32)
        proj_WE = self.param("proj", init, (config.width, self.output_width), jnp.float32)
        blocks = scan_blocks(VitBlock, config.layers, compute.remat_vit, 0, compute.unroll_layers)

        x_IPW = PatchEmbed(config, compute, name="patch_embed")(images_IHWC)
        class_IPW = jnp.broadcast_to(class_W.astype(dtype), (x_IPW.shape[0], 1, config.width))
        x_IPW = jnp.concatenate([class_IPW, x_IPW], axis=1) + positions_PW.astype(dtype)
        x_IPW = LayerNorm(config.layer_norm_eps, name="ln_pre")(x_IPW)
        x_IPW = blocks(config, compute, quick_gelu=self.quick_gelu, name="blocks")(x_IPW, None)[0]
        return LayerNorm(config.layer_norm_eps, name="ln_post")(x_IPW[:, 0]) @ proj_WE.astype(dtype)


class Clip(nn.Module):
    """Both towers under their parameter names."""

    config: ClipConfig
    compute: ComputeConfig

    def setup(self) -> None:
        """Declares the towers."""
        config = self.config
        # Texts are so short that a kernel, which pads them, would only lose.
        text_compute = dataclasses.replace(self.compute, attention="xla")
        self.vision = ClipVision(config.vision, config.embed_dim, config.quick_gelu, self.compute)
        self.text = ClipText(config.text, config.embed_dim, config.quick_gelu, text_compute)

    def encode_images(self, images_IHWC: jax.Array) -> jax.Array:
        """See the function of this name."""
        return _unit(self.vision(images_IHWC))

    def encode_texts(self, tokens_TL: jax.Array) -> jax.Array:
        """See the function of this name."""
        return _unit(self.text(tokens_TL))

    def touch(self) -> jax.Array:
        """Runs both towers once, for initialisation."""
        size = self.config.image_size
        images_IE = self.encode_images(jnp.zeros((1, size, size, 3), jnp.uint8))
        return images_IE @ self.encode_texts(jnp.zeros((1, 1), jnp.int32)).T


def _unit(x: jax.Array) -> jax.Array:
    """[.., E] to float32 of length 1."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ClipConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters with the distributions of CLIP (see `Vit`); weights of use come from a checkpoint."""
    return dict(Clip(config, INITIALISATION).init(key, method=Clip.touch)["params"])


def abstract_params(config: ClipConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def encode_images(params: Params, config: ClipConfig, compute: ComputeConfig, images_IHWC: jax.Array) -> jax.Array:
    """Embeddings of images.

    Args:
      params: the tree of `init_params`, any float dtype; `text` may be absent.
      config: the architecture.
      compute: dtype and attention; the attention is not `auto`.
      images_IHWC: uint8 [I, H, H, 3] RGB, H = `config.image_size`; normalised here with CLIP's mean and deviation.

    Returns:
      float32 [I, E] of length 1, so that the product with a text's embedding is the cosine of their angle.
    """
    return _apply(Clip(config, compute), params, Clip.encode_images, images_IHWC)


def encode_texts(params: Params, config: ClipConfig, compute: ComputeConfig, tokens_TL: jax.Array) -> jax.Array:
    """Embeddings of texts.

    Args:
      params: the tree of `init_params`, any float dtype; `vision` may be absent.
      config, compute: as in `encode_images`; the attention of texts is always `xla`.
      tokens_TL: int32, from `qwenvl_jax.data.clip_tokenizer`, L at most `config.text.context`.

    Returns:
      float32 [T, E] of length 1.
    """
    return _apply(Clip(config, compute), params, Clip.encode_texts, tokens_TL)


def _apply(network: Clip, params: Params, method: Callable[..., Any], rows: jax.Array) -> Any:
    return network.apply({"params": params}, rows, method=method)
