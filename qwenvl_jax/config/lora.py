"""The keys of `config.lora`: low-rank adapters (LoRA, arXiv:2106.09685) beside frozen kernels."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from qwenvl_jax.config.constraints import OneOf, Range, require
from qwenvl_jax.config.values import LARGE, SMALL, SizeOrZero

# The projections that may have an adapter, by the path of their parameters, and how many axes of the kernel are inputs.
LORA_TARGETS: dict[str, int] = {
    "decoder/blocks/attn/qkv": 1,
    "decoder/blocks/attn/out": 2,
    "decoder/blocks/mlp/up": 1,
    "decoder/blocks/mlp/gate": 1,
    "decoder/blocks/mlp/down": 1,
    "resampler/kv_proj": 1,
    "vit/blocks/attn/qkv": 1,
    "vit/blocks/attn/out": 2,
    "vit/blocks/mlp/up": 1,
    "vit/blocks/mlp/down": 1,
}

# Those whose kernels `compute.frozen_kernels` may quantise. The published Qwen-VL-Chat-Int4 has the same ones.
QUANTISED_TARGETS = tuple(target for target in LORA_TARGETS if target.startswith("decoder/blocks/"))

# Those of the released finetune.py: c_attn, attn.c_proj, w1 and w2.
RELEASED_TARGETS = (
    "decoder/blocks/attn/qkv",
    "decoder/blocks/attn/out",
    "decoder/blocks/mlp/up",
    "decoder/blocks/mlp/gate",
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Every target adds alpha / rank * B A dropout(x) to its output. All defaults but the rank are the released values.

    A maps the inputs to `rank` numbers and B these to the outputs. They are trained if `train.trainable` names `lora`.
    """

    rank: SizeOrZero = 0  # 0: no adapters
    alpha: Annotated[float, Range(SMALL, LARGE)] = 16.0
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.05  # share of the inputs of A that is left out
    targets: Annotated[tuple[str, ...], OneOf(tuple(LORA_TARGETS))] = RELEASED_TARGETS

    @property
    def scale(self) -> float:
        """The factor of every adapter; there is none without a rank."""
        return self.alpha / self.rank

    @property
    def adapted(self) -> tuple[str, ...]:
        """The targets, in the order of `LORA_TARGETS`; none if the rank is 0."""
        return tuple(target for target in LORA_TARGETS if self.rank and target in self.targets)

    def check(self, path: str) -> None:
        """Raises UserError if there is nothing to adapt, or something is named twice."""
        require(len(self.targets) > 0, f"{path}.targets is empty; name at least one projection, or remove the key")
        require(len(set(self.targets)) == len(self.targets), f"{path}.targets names a projection twice")


NO_LORA = LoraConfig()
