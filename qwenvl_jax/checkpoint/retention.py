"""Which finished checkpoints of a run are kept: the newest, some for ever, and the best by a figure of the logs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint.layout import EVALUATIONS, METRICS
from qwenvl_jax.config import CheckpointConfig
from qwenvl_jax.config.checkpoint_schema import EVALUATION, TRAINING
from qwenvl_jax.runtime import json_lines, log


def superfluous(steps: Sequence[int], newest: int, rules: CheckpointConfig, figures: Mapping[int, float]) -> list[int]:
    """The checkpoints that no rule keeps.

    Args:
      steps: of the finished checkpoints, oldest first.
      newest: how many of the newest are kept.
      rules: the others that are kept.
      figures: the value of `rules.best_by` of those checkpoints that have one.
    """
    kept = set(steps[-newest:])
    if rules.keep_every:
        kept |= {step for step in steps if step % rules.keep_every == 0}
    if rules.keep_best:
        sign = 1 if rules.best_is == "lowest" else -1
        # Of equal figures, the later checkpoint is the better one.
        ranked = sorted((step for step in steps if step in figures), key=lambda step: (sign * figures[step], -step))
        kept |= set(ranked[: rules.keep_best])
    return [step for step in steps if step not in kept]


def figures_of(workdir: epath.Path, steps: Iterable[int], name: str) -> dict[int, float]:
    """The figure of every checkpoint that has one. If no line of the log has it, a line says so, once.

    A figure of the training (`train/loss`) belongs to a window of steps: a checkpoint has that of the last line up to
    its step, or none if it is not finite there. A figure of an evaluation belongs to one state: a checkpoint has it if
    its step was evaluated.

    Args:
      workdir: the run's folder, with the logs.
      steps: of the checkpoints.
      name: of the figure.
    """
    of_state = name.startswith(EVALUATION)
    path = workdir / (EVALUATIONS if of_state else METRICS)
    lines = _logged(path)
    key = name.removeprefix(EVALUATION if of_state else TRAINING)
    logged = {step: json_lines.number(line.get(key)) for step, line in lines.items()}
    if lines and not any(key in line for line in lines.values()):
        _warn(str(path), name, ", ".join(sorted(json_lines.numbers(lines[max(lines)]).keys() - {"step"})))
    last = {step: step if of_state else max((line for line in lines if line <= step), default=None) for step in steps}
    figures = {step: logged.get(line) for step, line in last.items() if line is not None}
    return {step: figure for step, figure in figures.items() if figure is not None}


@functools.cache
def _warn(path: str, name: str, known: str) -> None:
    log.line(
        f"warning: no line of {path} has {name}, so config.checkpoint.keep_best keeps no checkpoint by it; set "
        f"config.checkpoint.best_by to one of these: {known}"
    )


def logged_steps(workdir: epath.Path) -> set[int]:
    """The steps that have a line in the log of the training."""
    return set(_logged(workdir / METRICS))


def _logged(path: epath.Path) -> dict[int, Mapping[str, Any]]:
    """The lines of a log by their step; those that cannot be read are left out."""
    lines = [(json_lines.step_of(line), line) for _, line in json_lines.read(path)]
    return {step: line for step, line in lines if step is not None}
