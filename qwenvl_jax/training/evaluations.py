"""When a training run is evaluated, and how an evaluation ends early.

A checkpoint is written before every evaluation. So SIGTERM may end it at once, and the next start evaluates the
same state again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from etils import epath

from qwenvl_jax.checkpoint import layout
from qwenvl_jax.config import Config
from qwenvl_jax.runtime import distributed, log
from qwenvl_jax.runtime.preemption import PreemptionGuard
from qwenvl_jax.training.metrics_log import MetricsLog, lines_up_to
from qwenvl_jax.training.observers import Observer
from qwenvl_jax.training.state import State


def is_evaluated(step: int, config: Config) -> bool:
    """Whether the state after a step is evaluated, by a config that evaluates at all."""
    return step % config.evaluation.every == 0 or step == config.train.steps


def is_unevaluated(workdir: epath.Path, config: Config, step: int) -> bool:
    """Whether an earlier start has saved the state after `step` and was stopped in its evaluation."""
    if not step or not is_evaluated(step, config):
        return False

    def look() -> bool:
        lines = lines_up_to(workdir / layout.EVALUATIONS, step)
        return not lines or json.loads(lines[-1])["step"] != step

    return bool(distributed.from_primary(look))


def evaluate(
    guard: PreemptionGuard, metrics_log: MetricsLog, step: int, state: State, observers: Sequence[Observer]
) -> None:
    """Evaluates a state that is being saved; SIGTERM ends the run at once, and the next start evaluates again."""
    try:
        with guard.ending_at_once():
            metrics_log.observe(step, state, observers)
    except SystemExit as end:
        sentence = (
            f"stopped by {guard.signal} in the evaluation after step {step}, whose state is saved; "
            "run the same command again to continue"
        )
        log.line(sentence)
        end.add_note(sentence)  # for the other processes, which may hear of the end before their own signal
        raise
