"""AdamW with global-norm clipping, warm-up, cosine decay and layer-wise ViT rates (paper, Table 8 and 3.1).

The rate of update number n = step + 1 out of T, with W warm-up updates:
    n <= W:  peak * n / W
    n > W:   minimum + (peak - minimum) * (1 + cos(pi * (n - W) / (T - W))) / 2
so the last warm-up update has the peak rate, and the last update of the stage the minimum.

Layer-wise decay d multiplies the whole update (weight decay included) of ViT block i out of S by d^(S - 1 - i): the
top block keeps the full rate. The parameters below the blocks (patch embedding, position table, `ln_pre`) get d^S.
`ln_post`, `proj`, the resampler and the decoder are above the ViT and keep the full rate. The embedding and the head of
the decoder have the rate times `vocabulary_rate`.

`config.optimizer.kind="muon"` replaces Adam's scaling for matrices (`muon.py`) and nothing else.

Weight decay acts on matrices and tables, not on norm scales and biases, as is usual; the paper does not specify it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qwenvl_jax.config import OptimizerConfig
from qwenvl_jax.params import Params, component_of, is_vocabulary, path_of
from qwenvl_jax.training.muon import scale_by_muon_and

Schedule = Callable[[Any], Any]


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Step (0-based, int or int32 scalar) -> float32 rate of the update that this step makes."""
    peak = config.peak_learning_rate
    low = config.min_learning_rate
    warmup = config.warmup_steps

    def schedule(step: Any) -> jax.Array:
        number = jnp.asarray(step, jnp.float32) + 1.0
        rising = peak * number / max(warmup, 1)
        progress = jnp.clip((number - warmup) / (steps - warmup), 0.0, 1.0)
        falling = low + (peak - low) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(number <= warmup, rising, falling)

    return schedule


def layer_scales(decay: float, layers: int) -> np.ndarray:
    """[S] float32 factors of the ViT's blocks, lowest block first; the last is 1."""
    return np.power(decay, np.arange(layers - 1, -1, -1)).astype(np.float32)


def learning_rate_scale(path: tuple[str, ...], layers: int, config: OptimizerConfig) -> np.ndarray:
    """The factor of one parameter: [S] for stacked ViT blocks, a scalar otherwise."""
    decay = config.vit_layer_decay
    if is_vocabulary(path):
        return np.asarray(config.vocabulary_rate, np.float32)
    if component_of(path) != "vit" or decay == 1.0:
        return np.ones((), np.float32)
    if path[1] == "blocks":
        return layer_scales(decay, layers)
    return np.asarray(decay**layers, np.float32)


def is_decayed(path: tuple[str, ...]) -> bool:
    """Whether weight decay acts on this parameter."""
    return path[-1] not in ("scale", "bias")


def scale_by_rate(schedule: Schedule, layers: int, config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the rate of `step` and by each parameter's factor.

    It counts no steps: the rate is a function of the step that the caller passes.
    """

    def update(
        updates: Params, state: optax.EmptyState, params: Params | None = None, *, step: jax.Array | int, **extra: Any
    ) -> tuple[Params, optax.EmptyState]:
        del params, extra
        rate = schedule(step)

        def scale(key_path: Any, leaf: jax.Array) -> jax.Array:
            factor = learning_rate_scale(path_of(key_path), layers, config)
            return -rate * factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim)) * leaf

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(config: OptimizerConfig, steps: int, vit_layers: int) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a stage, over trees of trainable parameters only.

    Its `update` takes the keyword `step`, the 0-based number of the step. A batch that is skipped because its
    gradients are not finite advances the schedule like any other.

    Args:
      config: rates, betas, decay, clip.
      steps: T, updates of the whole stage.
      vit_layers: S of the ViT.
    """

    def decayed(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path_of(path)), params)

    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.first_moment_dtype)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam if config.kind == "adamw" else scale_by_muon_and(adam, config),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        scale_by_rate(make_schedule(config, steps), vit_layers, config),
    )
