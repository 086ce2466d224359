"""The part of the schema that describes the model.

Source: facts of the released checkpoint.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from qwenvl_jax.config.constraints import OneOf, Range, require
from qwenvl_jax.config.values import LARGE, LARGEST_SIZE, NormEps, Size, SizeOrZero


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """OpenCLIP-style vision transformer. `position_grid` is the side of the stored position table.

    With a `window` of so many patches per side, attention stays within windows (paper E.3: 224 px, 16 patches), except
    in one layer of every `global_every`, the last. 0 is the released model: every layer sees all patches.

    `fresh_positions` is how a new position table begins: "normal" with width^-0.5 as in CLIP, which is small beside the
    patches, so that a ViT that learns from little data takes long to tell places apart; or "sincos", as large as the
    patches, which needs a width that is a multiple of 4.
    """

    width: Size
    layers: Size
    heads: Size
    mlp_dim: Size
    patch_size: Size
    position_grid: Size
    layer_norm_eps: NormEps
    window: SizeOrZero = 0
    global_every: Size = 4
    fresh_positions: Annotated[str, OneOf(("normal", "sincos"))] = "normal"

    def check(self, path: str) -> None:
        """Raises UserError if the width does not divide into heads."""
        require(self.width % self.heads == 0, f"{path}: width {self.width} is no multiple of {self.heads} heads")
        sincos = self.fresh_positions == "sincos"
        require(not sincos or self.width % 4 == 0, f"{path}: width {self.width} is no multiple of 4, as sincos needs")

    def windowed_layers(self, side: int) -> tuple[bool, ...]:
        """For every layer whether it attends within windows, in an image of `side` x `side` patches."""
        cut = 0 < self.window < side
        return tuple(cut and (layer + 1) % self.global_every != 0 for layer in range(self.layers))


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Position-aware adapter: `query_grid`^2 queries. Its width is the decoder's."""

    query_grid: Size
    heads: Size
    layer_norm_eps: NormEps

    @property
    def queries(self) -> int:
        """Queries, and so features per image."""
        return self.query_grid**2

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in a row: its queries between `<img>` and `</img>`."""
        return self.queries + 2


# The released max_position_embeddings is four times seq_length.
POSITIONS_PER_TRAIN_LENGTH = 4


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Qwen decoder. `train_length` is the base of log-n attention and dynamic NTK (released `seq_length`).

    Fresh weights are normal with `initializer_range`. The release's 0.02 suits a width of 4,096; a narrow decoder needs
    more, about 1.3 / sqrt(width), for its attention and its output to depend on their inputs from the start.
    """

    vocab_size: Size
    width: Size
    layers: Size
    heads: Size
    mlp_dim: Size
    rope_base: Annotated[float, Range(1, LARGE, above=True)]
    rms_norm_eps: NormEps
    train_length: Annotated[int, Range(2, LARGEST_SIZE)]  # its logarithm is a divisor
    logn_attention: bool
    dynamic_ntk: bool
    initializer_range: Annotated[float, Range(0, 1, above=True)] = 0.02

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def max_positions(self) -> int:
        """Tokens of the longest prompt (released `max_position_embeddings`): 8,192 for Qwen-VL."""
        return POSITIONS_PER_TRAIN_LENGTH * self.train_length

    def check(self, path: str) -> None:
        """Raises UserError if the width does not suit the heads, rotary embedding or the resampler's table."""
        require(self.width % self.heads == 0, f"{path}: width {self.width} is no multiple of {self.heads} heads")
        require(self.head_dim % 2 == 0, f"{path}: head size {self.head_dim} must be even for rotary")
        require(self.width % 4 == 0, f"{path}.width {self.width} must divide by 4 (sin-cos grid)")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model; two checkpoints can follow one another only if their `architecture` is equal."""

    name: str
    vit: VitConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig

    def architecture(self) -> ModelConfig:
        """Without the name and what only fresh weights depend on: checkpoints fit if these are equal."""
        return dataclasses.replace(
            self,
            name="",
            vit=dataclasses.replace(self.vit, fresh_positions=VitConfig.fresh_positions),
            decoder=dataclasses.replace(self.decoder, initializer_range=DecoderConfig.initializer_range),
        )

    def check(self, path: str) -> None:
        """Raises UserError if the resampler's heads do not divide the decoder's width."""
        width = self.decoder.width
        heads = self.resampler.heads
        require(width % heads == 0, f"{path}.resampler: width {width} is no multiple of {heads} heads")
