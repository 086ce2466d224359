"""The running means of loss and gradient norm, on the devices, and the rule that calls a step an anomaly.

An anomaly does not enter the means, so one bad batch does not raise the bar for the next. The means are part of the
state: whether a step is a spike depends on all steps before it, also after a restart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qwenvl_jax.config import AnomaliesConfig
from qwenvl_jax.params import PyTree


class Means(NamedTuple):
    """Exponential running sums over the regular steps.

    Attributes:
      loss, grad_norm: float32 scalars, weighted sums.
      weight: float32 scalar, the sum of the weights; a mean is its sum divided by it.
      steps: int32 scalar, how many steps have entered.
    """

    loss: Any
    grad_norm: Any
    weight: Any
    steps: Any


def no_means(config: AnomaliesConfig) -> PyTree:
    """The `Means` of a run without steps; () if the config has no rule for spikes, which then costs nothing."""
    if not config.spikes:
        return ()
    zero = jnp.zeros((), jnp.float32)
    return Means(zero, zero, zero, jnp.zeros((), jnp.int32))


def judge(config: AnomaliesConfig, loss: jax.Array, grad_norm: jax.Array, means: PyTree) -> tuple[jax.Array, PyTree]:
    """Whether a step is regular (a bool scalar), and the means after it.

    Args:
      config: the rule.
      loss, grad_norm: float32 scalars of the step.
      means: before the step.
    """
    regular = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if not config.spikes:
        return regular, means
    known = means.steps >= max(1, config.warmup_steps)
    for factor, value, total in (
        (config.loss_factor, loss, means.loss),
        (config.gradient_factor, grad_norm, means.grad_norm),
    ):
        if factor:  # multiplied, because the weight may be 0
            regular &= ~(known & (value * means.weight > factor * total))
    keep = 1 - 1 / config.mean_steps
    after = Means(
        loss=keep * means.loss + (1 - keep) * loss,
        grad_norm=keep * means.grad_norm + (1 - keep) * grad_norm,
        weight=keep * means.weight + (1 - keep),
        steps=means.steps + 1,
    )
    return regular, jax.tree.map(lambda new, old: jnp.where(regular, new, old), after, means)
