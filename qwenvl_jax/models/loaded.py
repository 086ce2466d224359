"""A model that can be run: its parameters together with the architecture and the way to compute.

Shape suffixes: B rows, L tokens, T cached tokens, I images, H pixels, F image features, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools

import jax

from qwenvl_jax.config import ComputeConfig, ModelConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.cache import Cache
from qwenvl_jax.models.qwen_vl import Params


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "compute"])
@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """The model that evaluation, chat and parity ask.

    It is a pytree whose leaves are the parameters, so it can be an argument of a jitted function; a change of `config`
    or `compute` compiles the function again. The methods are those of `qwen_vl`, which describes shapes and errors.

    Attributes:
      params: the tree of `qwen_vl.init_params`, any float dtype; towers that are never asked may be absent.
      config: the architecture.
      compute: dtype and attention.
    """

    params: Params
    config: ModelConfig
    compute: ComputeConfig

    def encode_images(self, images_IHWC: jax.Array) -> jax.Array:
        """Features of images, [I * Q, D]."""
        return qwen_vl.encode_images(self.params, self.config, self.compute, images_IHWC)

    def embed(self, tokens_BL: jax.Array, image_slot_BL: jax.Array, features_FD: jax.Array | None) -> jax.Array:
        """Embeddings [B, L, D] in which image features replace those of the image's slots."""
        return qwen_vl.embed(self.params, self.config, self.compute, tokens_BL, image_slot_BL, features_FD)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] hidden states to [..., V] logits in float32."""
        return qwen_vl.logits(self.params, self.config, self.compute, hidden)

    def ntk_alpha(self, length: jax.Array | int) -> jax.Array:
        """The NTK factor of a prompt with this many tokens."""
        return qwen_vl.ntk_alpha(self.config, length)

    def init_cache(self, rows: int, length: int) -> Cache:
        """An empty cache for rows of up to `length` tokens, prompt and answer; apart for layers that are apart on CPUs.

        On GPUs a cache in one stack is written by fewer kernels.
        """
        apart = isinstance(self.params["decoder"]["blocks"], tuple) and jax.default_backend() == "cpu"
        return qwen_vl.init_cache(self.config, self.compute, rows, length, apart=apart)

    def prefill(
        self, embeddings_BLD: jax.Array, positions_BL: jax.Array, valid_BL: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Runs whole prompts; hidden states [B, L, D] and the cache filled with them."""
        return qwen_vl.prefill(
            self.params, self.config, self.compute, embeddings_BLD, positions_BL, valid_BL, cache
        )  # fmt: skip

    def after_prefix(
        self, embeddings_BLD: jax.Array, valid_BL: jax.Array, prefix: Cache, length: jax.Array | int
    ) -> jax.Array:
        """Runs rows that continue one cached prefix; hidden states [B, L, D]."""
        return qwen_vl.after_prefix(
            self.params, self.config, self.compute, embeddings_BLD, valid_BL, prefix, length
        )  # fmt: skip

    def decode_step(
        self,
        token_B: jax.Array,
        position_B: jax.Array,
        valid_BT: jax.Array,
        index: jax.Array | int,
        cache: Cache,
        ntk_alpha: jax.Array | float,
    ) -> tuple[jax.Array, Cache]:
        """One more token for every row; hidden states [B, D] and the cache with the token."""
        return qwen_vl.decode_step(
            self.params, self.config, self.compute, token_B, position_B, valid_BT, index, cache, ntk_alpha
        )  # fmt: skip
