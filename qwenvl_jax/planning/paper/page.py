"""The cost of the whole paper as a table, as JSON and as one HTML page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape

from qwenvl_jax.html.page import header, page, section
from qwenvl_jax.html.tables import table
from qwenvl_jax.planning.paper.evaluation import LEFT_OUT
from qwenvl_jax.planning.paper.lines import Line
from qwenvl_jax.planning.predictions import Step
from qwenvl_jax.runtime import log

COLUMNS = ("", "chips", "chip-hours", "core-hours", "days", "dollars", "formula")
NOTE = (
    "Steps on TPUs are predicted, not measured; rates of data work are measured, and what is assumed says so. "
    "Restarts, stalls, checkpoints, traffic and the judge of TouchStone are not in it. "
    f"Table 9 is without {', '.join(LEFT_OUT.values())}."
)


def _range(values: tuple[float, float]) -> str:
    first, second = (f"{value:,.0f}" if max(values) >= 100 else f"{value:.2f}" for value in values)
    if not any(values):
        return ""
    return first if first == second else f"{first} - {second}"


def cells(line: Line) -> tuple[str, ...]:
    """One line of the table, with the columns `COLUMNS`."""
    return (
        line.name,
        str(line.chips or ""),
        _range(line.chip_hours),
        f"{line.core_hours:,.0f}" if line.core_hours else "",
        _range(line.days),
        _range(line.dollars),
        line.formula,
    )


def show(plans: Mapping[str, Sequence[Line]]) -> None:
    """Prints one table with the lines of every kind of chip."""
    rows = [cells(line) for lines in plans.values() for line in lines]
    log.table(f"the whole paper on {', '.join(plans)}: predicted, not measured", COLUMNS, rows)
    log.line(NOTE)


def json_text(plans: Mapping[str, Sequence[Line]], steps: Mapping[str, Mapping[str, Step]]) -> str:
    """All lines and predicted steps by topology."""
    values = {
        name: {
            "lines": [dataclasses.asdict(line) for line in lines],
            "steps": {stage: dataclasses.asdict(step) for stage, step in steps[name].items()},
        }
        for name, lines in plans.items()
    }
    return json.dumps(values, indent=2)


def html(plans: Mapping[str, Sequence[Line]]) -> str:
    """A page with one section for every kind of chip."""
    anchors = [(f"plan{number}", name) for number, name in enumerate(plans)]
    parts = [header("What the whole paper costs", escape(NOTE), anchors)]
    for (anchor, name), lines in zip(anchors, plans.values(), strict=True):
        parts.append(section(anchor, name, "", table(COLUMNS, [cells(line) for line in lines], total=True)))
    return page("What the whole paper costs", "\n".join(parts))
