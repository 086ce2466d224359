"""Adds up what the whole paper costs on one kind of chip.

Steps of the stages and of decoding are predicted. Those in `planning/predictions.json` count as long as the recipe is
the one that was compiled; for another recipe or slice the step is compiled now. Nothing is measured on a TPU. Rates of
data work are measured on CPUs and one H200.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwenvl_jax.chips import Topology, parse_topology
from qwenvl_jax.config import Config
from qwenvl_jax.planning import predictions
from qwenvl_jax.planning.paper import corpora, evaluation
from qwenvl_jax.planning.paper.lines import Line, on_chips, span, summed
from qwenvl_jax.planning.predictions import Step
from qwenvl_jax.runtime.errors import UserError

STAGES = ("pretrain", "multitask", "sft")


def topologies(names: str) -> list[Topology]:
    """The slices of `--topology`, separated by commas.

    Raises:
      UserError: for a name that is no slice that the cloud has.
    """
    slices = [parse_topology(name.strip()) for name in names.split(",")]
    for topology in slices:
        topology.check_rentable()
    return slices


def check_prices(named: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """Raises UserError if a price file lacks the price of a chip that is planned."""
    for kind in kinds:
        if kind not in named:
            raise UserError(f"the price table has no price of {kind}; add it in dollars per chip and hour")


def plan(
    chosen: Topology, prices: Mapping[str, float], config_of: Callable[[str, str], Config]
) -> tuple[list[Line], dict[str, Step]]:
    """All lines for one kind of chip with their sums, and the predicted steps by stage.

    Args:
      chosen: the slice of stages 1 and 2.
      prices: dollars per chip-hour by kind, and those of `assumptions.SERVICES`.
      config_of: the config of a stage with the recipe of a chip.

    Raises:
      UserError: if nothing is stored for a recipe of the chip, or a step does not fit.
    """
    kind = chosen.chip.kind
    missing = [stage for stage in STAGES if predictions.slice_of(kind, stage) is None]
    if missing:
        raise UserError(f"no prediction of {', '.join(missing)} on {kind} is stored; plan one of the other chips")
    lines = list(corpora.lines(prices))
    steps = {}
    for stage in STAGES:
        config = config_of(stage, kind)
        topology = stage_slice(stage, chosen)
        steps[stage] = predictions.step_of(config, topology)
        lines.append(stage_line(config, topology, steps[stage], prices[kind]))
    config = config_of("sft", kind)
    decoding = predictions.decoding_of(kind, config)
    lines += evaluation.lines(kind, config, steps["sft"], decoding, prices[kind])
    return summed(lines), steps


def stage_slice(stage: str, chosen: Topology) -> Topology:
    """The chosen slice; for stage 3, whose few rows fill no larger one, that of its recipe if it is smaller."""
    recipe = predictions.slice_of(chosen.chip.kind, stage)
    return recipe if stage == "sft" and recipe is not None and recipe.chips < chosen.chips else chosen


def stage_line(config: Config, topology: Topology, step: Step, price: float) -> Line:
    """The cost of a stage without restarts and stalls."""
    steps = config.train.steps
    formula = f"{steps:,} steps of {config.data.rows_per_step:,} rows x {span(step.seconds, '.4g')} s (predicted)"
    seconds = (steps * step.seconds[0], steps * step.seconds[1])
    return on_chips("stages", f"{config.train.stage} on {topology.name}", formula, topology.chips, seconds, price)
