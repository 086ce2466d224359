"""Which finished checkpoints of a run are kept: the newest, some for ever, and the best by a figure of the logs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from qwenvl_jax.checkpoint.layout import EVALUATIONS, METRICS
from qwenvl_jax.config import CheckpointConfig
from qwenvl_jax.config.checkpoint_schema import EVALUATION, TRAINING
from qwenvl_jax.runtime import storage


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
    """The figure of every checkpoint that has one.

    A figure of the training (`train/loss`) belongs to a window of steps: a checkpoint has that of the last line up to
    its step. A figure of an evaluation belongs to one state: a checkpoint has it if its step was evaluated.

    Args:
      workdir: the run's folder, with the logs.
      steps: of the checkpoints.
      name: of the figure.
    """
    if name.startswith(EVALUATION):
        measured = _logged(workdir / EVALUATIONS, name.removeprefix(EVALUATION))
        return {step: measured[step] for step in steps if step in measured}
    logged = _logged(workdir / METRICS, name.removeprefix(TRAINING))
    last = {step: max((line for line in logged if line <= step), default=None) for step in steps}
    return {step: logged[line] for step, line in last.items() if line is not None}


def logged_steps(workdir: epath.Path) -> set[int]:
    """The steps that have a line in the log of the training."""
    return set(_logged(workdir / METRICS, "step"))


def _logged(path: epath.Path, key: str) -> dict[int, float]:
    """The finite values of a key of a log, by step; lines that a kill has cut short are left out."""
    try:
        lines = storage.read_bytes(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    values: dict[int, float] = {}
    for text in lines:
        try:
            line = json.loads(text)
            value = float(line[key])
            if value == value and abs(value) != float("inf"):
                values[int(line["step"])] = value
        except (ValueError, LookupError, TypeError):
            continue
    return values
