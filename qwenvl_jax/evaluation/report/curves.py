"""Figures over the steps of a run and over the number of exemplars (the paper's Figure 4), as charts with intervals."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.report.tables import title_of
from qwenvl_jax.evaluation.results.entries import Entry
from qwenvl_jax.evaluation.results.figures import Figure
from qwenvl_jax.html.charts import Measured, bands_chart
from qwenvl_jax.html.page import card, grid, section
from qwenvl_jax.html.tables import table

# Curves by the title of their chart, then by their name.
Charts = dict[str, dict[str, list[Measured]]]


def over_steps(entries: Sequence[Entry]) -> Charts:
    """For each benchmark and figure the curves of the runs that have at least two checkpoints."""
    runs = _names_of_runs(entries)
    charts: Charts = {}
    for entry in entries:
        if entry.step >= 0 and entry.run:
            for name, figure in entry.figures.items():
                title = f"{title_of(entry)} · {name}" if len(entry.figures) > 1 else title_of(entry)
                charts.setdefault(title, {}).setdefault(runs[entry.run], []).append(_measured(entry.step, figure))
    return _drawable(charts)


def over_shots(entries: Sequence[Entry]) -> Charts:
    """For each benchmark that was asked with different numbers of exemplars the curves of the checkpoints."""
    charts: Charts = {}
    for entry in entries:
        if entry.figures and not entry.prompt:
            name = next(iter(entry.figures))
            curve = f"{entry.checkpoint}, with leaks" if entry.leak and entry.shots else entry.checkpoint
            points = charts.setdefault(_benchmark_title(entry), {}).setdefault(curve, [])
            points.append(_measured(entry.shots, entry.figures[name]))
    return _drawable(charts)


def steps_section(entries: Sequence[Entry]) -> str:
    """The charts over training steps; empty if no run has two checkpoints."""
    intro = "Figures over the checkpoints of each run, in the unit of papers; bands are 95 % intervals."
    return _section("steps", "Over training", intro, over_steps(entries), lambda charts: "")


def shots_section(entries: Sequence[Entry]) -> str:
    """The charts of few-shot evaluation, as the paper's Figure 4; empty if there are none."""
    intro = (
        "Figures over the number of answered questions before each. The paper draws them at random from the training "
        "split, too, but prints no numbers."
    )
    return _section("shots", "Figure 4 · Few-shot learning", intro, over_shots(entries), _shots_table)


def _section(anchor: str, title: str, intro: str, charts: Charts, below: Callable[[Charts], str]) -> str:
    if not charts:
        return ""
    cards = [card(html.escape(name), bands_chart(curves, label=name), "chart") for name, curves in charts.items()]
    return section(anchor, title, intro, grid(cards, wide=True) + below(charts))


def _shots_table(charts: Charts) -> str:
    shots = sorted({point.x for curves in charts.values() for points in curves.values() for point in points})
    rows = []
    for title, curves in charts.items():
        for name, points in curves.items():
            values = {point.x: f"{point.y:.2f}" for point in points}
            rows.append([title, name, *(values.get(number, "–") for number in shots)])
    return table(["benchmark", "checkpoint", *(f"{number:g}-shot" for number in shots)], rows, text_columns=2)


def _measured(x: float, figure: Figure) -> Measured:
    low = math.nan if figure.low is None else figure.low * figure.unit
    high = math.nan if figure.high is None else figure.high * figure.unit
    return Measured(x, figure.value * figure.unit, low, high)


def _drawable(charts: Charts) -> Charts:
    """The curves with at least two points, sorted; of two points with the same `x` the last counts."""
    drawable: Charts = {}
    for title, curves in charts.items():
        for name, points in curves.items():
            by_x = {point.x: point for point in points}
            if len(by_x) >= 2:
                drawable.setdefault(title, {})[name] = [by_x[x] for x in sorted(by_x)]
    return drawable


def _benchmark_title(entry: Entry) -> str:
    benchmark = BENCHMARKS.get(entry.benchmark)
    return benchmark.title if benchmark else entry.benchmark


def _names_of_runs(entries: Sequence[Entry]) -> dict[str, str]:
    """The last part of each run's folder, or all of it if two runs share that."""
    runs = dict.fromkeys(entry.run for entry in entries)
    ends = [run.rstrip("/").rpartition("/")[2] for run in runs]
    return {run: end if ends.count(end) == 1 else run for run, end in zip(runs, ends, strict=True)}
