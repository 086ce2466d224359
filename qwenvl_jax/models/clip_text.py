"""The text tower of CLIP as OpenCLIP has it: causal blocks, pooled at the last token of the text.

Shape suffixes: T texts, L tokens, D width, E width of the embeddings that images and texts share.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from qwenvl_jax.config import ComputeConfig
from qwenvl_jax.models.layers import LayerNorm, scan_blocks
from qwenvl_jax.models.vit import VitBlock


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of the text tower. `context` is the number of positions, so the longest text in tokens."""

    width: int
    layers: int
    heads: int
    mlp_dim: int
    context: int = 77
    vocab_size: int = 49_408
    layer_norm_eps: float = 1e-5

    @property
    def window(self) -> int:
        """Every layer sees the whole text."""
        return 0


class ClipText(nn.Module):
    """Token ids to text embeddings.

    Attributes:
      config: sizes of the tower.
      output_width: E.
      quick_gelu: whether the blocks use `quick_gelu`.
      compute: dtype and attention.
    """

    config: ClipTextConfig
    output_width: int
    quick_gelu: bool
    compute: ComputeConfig

    @nn.compact
    def __call__(self, tokens_TL: jax.Array) -> jax.Array:
        """int32 [T, L] to [T, E] in the compute dtype, not normalised.

        A text ends with the end token, which has the largest id of the vocabulary; ids after it have no effect. So L
        may be anything from the length of the longest text to the context.
        """
        config = self.config
        compute = self.compute
        dtype = compute.compute_dtype
        normal = nn.initializers.normal
        table_VD = self.param("embedding", normal(0.02), (config.vocab_size, config.width), jnp.float32)
        positions = self.param("position_embedding", normal(0.01), (config.context, config.width), jnp.float32)
        proj = self.param("proj", normal(config.width**-0.5), (config.width, self.output_width), jnp.float32)
        blocks = scan_blocks(VitBlock, config.layers, compute.remat_vit, 0, compute.unroll_layers)

        x_TLD = (table_VD[tokens_TL] + positions[: tokens_TL.shape[1]]).astype(dtype)
        x_TLD = blocks(config, compute, causal=True, quick_gelu=self.quick_gelu, name="blocks")(x_TLD, None)[0]
        ends_T = jnp.argmax(tokens_TL, axis=1)
        x_TD = jnp.take_along_axis(x_TLD, ends_T[:, None, None], axis=1)[:, 0]
        return LayerNorm(config.layer_norm_eps, name="ln_final")(x_TD) @ proj.astype(dtype)
