"""Floating-point operations of a training step, by arithmetic.

Only matrix products are counted, with two operations per multiply-add; a causal product counts half. A product y = x W
costs its forward operations once, once more for dW if W is trained, and once more for dx if anything below it is
trained. So a frozen decoder above a trained ViT costs 2x its forward operations (stage 1), and a frozen ViT 1x
(stage 3). Recomputation (remat) and padding are not counted: they are overhead that utilisation must show.

Shape suffixes: L tokens, P patches, Q queries, D decoder width, W ViT width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

from qwenvl_jax.config import Config
from qwenvl_jax.models import lora
from qwenvl_jax.params import LORA, component_of, flatten


@dataclasses.dataclass(frozen=True)
class Work:
    """The amounts that determine the operations of a step.

    Attributes:
      tokens: decoder positions.
      context: tokens that one position could attend to if nothing were masked, the length of a row.
      supervised: positions whose logits are computed.
      images: images encoded.
    """

    tokens: float
    context: float
    supervised: float
    images: float


def full_work(config: Config) -> Work:
    """The most work that a step can hold: all rows full, all tokens supervised, the image budget used up."""
    data = config.data
    images = data.image_budget * data.accumulation if data.images_per_row else 0
    tokens = data.rows_per_step * data.sequence_length
    return Work(tokens, data.sequence_length, tokens, images)


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix products of one kind. `component` is that of the weight, or None for those of attention."""

    part: str
    component: str | None
    forward: float


def forward_flops(config: Config, work: Work, causal_share: float = 0.5) -> list[Product]:
    """All products of a forward pass in the order of the data, `forward` in operations per step."""
    vit = config.model.vit
    decoder = config.model.decoder
    queries = config.model.resampler.queries
    side = config.data.image_size // vit.patch_size
    patches = side**2
    keys = sum(vit.window**2 if windowed else patches for windowed in vit.windowed_layers(side))  # in all layers
    width = decoder.width
    images = work.images
    tokens = work.tokens
    return [
        Product("patch_embed", "vit", 2 * images * patches * 3 * vit.patch_size**2 * vit.width),
        Product("vit", "vit", 4 * images * patches * vit.layers * (2 * vit.width**2 + vit.width * vit.mlp_dim)),
        Product("vit", None, 4 * images * patches * keys * vit.width),
        Product("kv_proj", "resampler", 2 * images * patches * vit.width * width),
        Product("resampler", "resampler", 4 * images * patches * width**2),
        Product("resampler", None, 4 * images * queries * patches * width),
        Product("resampler", "resampler", 2 * images * queries * width**2),
        Product("vit_head", "vit_head", 2 * images * queries * width**2),
        Product("decoder", "decoder", 2 * tokens * decoder.layers * (4 * width**2 + 3 * width * decoder.mlp_dim)),
        Product("decoder", None, 4 * tokens * work.context * causal_share * decoder.layers * width),
        *_lora_products(config, {"vit": images * patches, "resampler": images * patches, "decoder": tokens}),
        Product("lm_head", "vocabulary", 2 * work.supervised * width * decoder.vocab_size),
    ]


def _lora_products(config: Config, inputs: dict[str, float]) -> list[Product]:
    """The products of the adapters; `inputs` says how many vectors reach the projections of a tower."""
    if not config.lora.rank:
        return []
    sizes = dict.fromkeys(inputs, 0)
    for path, leaf in flatten(lora.abstract_params(config.model, config.lora)).items():
        if component_of(path) == LORA:
            sizes[path[0]] += math.prod(leaf.shape)
    return [Product("lora", "lora", 2 * inputs[tower] * size) for tower, size in sizes.items() if size]


def training_flops(config: Config, work: Work | None = None, causal_share: float = 0.5) -> dict[str, float]:
    """Operations of one optimiser step per part, forward and backward, as the stage trains it.

    Args:
      config: the run; `train.trainable` decides which products have a backward pass.
      work: of the step; by default `full_work`.
      causal_share: 0.5 counts the useful half of causal attention, 1.0 all operations of an implementation that skips
        no blocks.
    """
    trained = config.train.trainable
    flops: dict[str, float] = {}
    adapted_towers = {target.split("/")[0] for target in config.lora.adapted}
    below = False  # whether the input of the product depends on a trained parameter
    for product in forward_flops(config, full_work(config) if work is None else work, causal_share):
        weight_trained = product.component in trained
        weight_trained |= product.component == "vocabulary" and "decoder" in trained
        # These parts begin with a parameter of their own, a norm or an embedding, before their first product.
        below |= weight_trained and product.part in ("vit_head", "decoder", "lm_head", "lora")
        below |= product.part in adapted_towers or (product.part == "decoder" and "vocabulary" in trained)
        passes = 1 + 2 * below if product.component is None else 1 + weight_trained + below
        flops[product.part] = flops.get(product.part, 0.0) + passes * product.forward
        below |= weight_trained
    return flops
