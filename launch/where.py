"""`python -m launch where`: which paths, ways to buy and zones a topology has, what it costs, and a million samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from launch import zones
from launch.job import CAPACITIES, Job
from launch.paths import PATHS
from qwenvl_jax.chips import Topology
from qwenvl_jax.runtime.errors import UserError


class Pace(NamedTuple):
    """How fast a stage runs on the topology, as `python -m qwenvl_jax.plan --json` predicts it.

    Attributes:
      fastest, slowest: seconds per step, the ends of the predicted range.
      samples: per step.
    """

    fastest: float
    slowest: float
    samples: float


def refusal(name: str, topology: Topology, capacity: str) -> str:
    """Why a path cannot launch a topology that is bought in one way; empty if it can."""
    try:
        PATHS[name].check(
            Job(
                name="where",
                topology=topology,
                command=("python",),
                workdir="gs://bucket/run",
                capacity=capacity,
                reservation="reservation" if capacity == "reserved" else "",
                hours=24 if capacity == "flex_start" else 0,
                project="project",
                zones=zones.ZONES[topology.chip.kind][:1],
                cluster="cluster",
                image="image",
            )
        )
    except UserError as error:
        return str(error)
    return ""


def read_pace(path: str, samples: float) -> Pace | None:
    """The pace from a file of `plan --json`; None without a file.

    Raises:
      UserError: if the file is no prediction of a step that fits, or the samples per step are not known.
    """
    if not path:
        return None
    try:
        values = json.loads(Path(path).read_text())
        seconds = [float(values["step_seconds_roofline"]), float(values["step_seconds_cycles"])]
        if not all(math.isfinite(one) and one > 0 for one in seconds):
            raise ValueError(f"its steps take {seconds[0]} and {seconds[1]} s")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"--plan={path} is no prediction of a step that fits ({error}); write one by "
            "`python -m qwenvl_jax.plan .. --json > plan.json`"
        ) from None
    if samples <= 0:
        raise UserError("--samples_per_step is missing; `python -m qwenvl_jax.audit` measures the samples of a row")
    return Pace(min(seconds), max(seconds), samples)


def report(topology: Topology, prices: zones.Prices, pace: Pace | None) -> str:
    """The tables, as text."""
    kind = topology.chip.kind
    paths = [name for name, path in PATHS.items() if path.zoned]
    lines = [topology.description, ""]
    refusals = {(name, capacity): refusal(name, topology, capacity) for name in paths for capacity in CAPACITIES}
    rows = [(name, *("no" if refusals[name, capacity] else "yes" for capacity in CAPACITIES)) for name in paths]
    lines += table(("path", *CAPACITIES), rows)
    reasons = dict.fromkeys(filter(None, refusals.values()))
    lines += ["", *(f"no: {reason}" for reason in reasons)] if reasons else []
    lines += ["", *_zones(topology, prices, pace)]
    lines += ["", "Zones of November 2026; list prices on demand in the United States. --prices=FILE replaces them."]
    if not all(zones.price(kind, zone, "on_demand", prices) for zone in zones.ZONES[kind]):
        lines.append("A price that is not known here is shown as -; see https://cloud.google.com/tpu/pricing.")
    return "\n".join(lines)


def _zones(topology: Topology, prices: zones.Prices, pace: Pace | None) -> list[str]:
    """The table of zones, the cheapest first."""
    kind = topology.chip.kind
    columns = ["zone, cheapest first", "$ per chip and hour", f"$ per hour, {topology.chips} chips"]
    if pace:
        columns.append("$ per million samples")
    rows = []
    for zone in zones.by_price(kind, "on_demand", prices):
        dollars = zones.price(kind, zone, "on_demand", prices)
        row = [zone, *((f"{dollars:.2f}", f"{dollars * topology.chips:,.0f}") if dollars is not None else ("-", "-"))]
        if pace:
            row.append("-" if dollars is None else cost_range(dollars * topology.chips, pace))
        rows.append(row)
    return table(columns, rows)


def cost_range(dollars_per_hour: float, pace: Pace) -> str:
    """Dollars per million samples at both ends of the predicted range."""
    low, high = (dollars_per_hour * seconds / 3600 * 1e6 / pace.samples for seconds in (pace.fastest, pace.slowest))
    return f"{low:,.0f} to {high:,.0f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of aligned columns."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
