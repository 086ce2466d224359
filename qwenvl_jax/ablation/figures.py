"""The figures of an arm, from what its run has logged."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from qwenvl_jax.ablation.study import Arm, Study, StudyConfig
from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.report.facts import Line, read_facts

Points = Sequence[tuple[float, float]]  # (step, value), by step


@dataclasses.dataclass(frozen=True)
class ArmFigures:
    """What an arm has measured so far.

    Attributes:
      step: the last that it has taken.
      finished: whether it is trained and evaluated to its end.
      losses: per supervised token in nats, of every line of its log.
      initial_loss: the mean of the losses of the first steps; NaN without any.
      late_loss: the mean of the losses after the study's `late_from`; NaN if no step is after it.
      seconds_per_step: the median over the lines of its log, without evaluations; NaN without any.
      scores: what was measured while it trained, by name; without losses by source and task.
    """

    step: int = 0
    finished: bool = False
    losses: Points = ()
    initial_loss: float = math.nan
    late_loss: float = math.nan
    seconds_per_step: float = math.nan
    scores: Mapping[str, Points] = dataclasses.field(default_factory=dict)


def read_figures(study: Study) -> dict[str, ArmFigures]:
    """The figures of every arm by its name; those of an arm that has not begun are empty.

    Raises:
      UserError: if no arm has begun.
    """
    figures = {arm.name: figures_of(arm, study.settings) for arm in study.arms}
    if not any(lineage.has_run(arm.workdir) for arm in study.arms):
        names = ", ".join(figures)
        raise UserError(f"{study.workdir} holds none of the arms {names}; correct --workdir, or train them first")
    return figures


def figures_of(arm: Arm, settings: StudyConfig) -> ArmFigures:
    """The figures of one arm."""
    if not lineage.has_run(arm.workdir):
        return ArmFigures()
    facts = read_facts(arm.workdir)
    losses = _points(facts.lines, "loss")
    evaluated = not arm.config.evaluation.every or (
        bool(facts.evaluations) and facts.evaluations[-1]["step"] == arm.config.train.steps
    )
    scores = dict.fromkeys(name for line in facts.evaluations for name in line if name != "step" and "/" not in name)
    return ArmFigures(
        step=facts.step,
        finished=facts.finished and evaluated,
        losses=losses,
        initial_loss=_mean(value for step, value in losses if step <= settings.initial_steps),
        late_loss=_mean(value for step, value in losses if step > settings.late_from),
        seconds_per_step=_median(line["timing"].get("seconds_per_step") for line in facts.lines),
        scores={"held-out loss" if key == "loss" else key: _points(facts.evaluations, key) for key in scores},
    )


def _points(lines: Sequence[Line], key: str) -> Points:
    """The finite values of a key with their steps."""
    values = [(float(line["step"]), float(line[key])) for line in lines if key in line]
    return [(step, value) for step, value in values if math.isfinite(value)]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return statistics.fmean(numbers) if numbers else math.nan


def _median(values: Iterable[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else math.nan
