"""The curves of a run over its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from qwenvl_jax.config import Config
from qwenvl_jax.html.charts import Measured, bands_chart, line_chart, lines_chart
from qwenvl_jax.html.page import card, grid
from qwenvl_jax.training.report.facts import Line, RunFacts

MOST_POINTS = 400  # of a curve; more lines are averaged in groups
_FEW = 60  # points of a curve that is drawn without smoothing

Value = Callable[[Line], float | None]


def curves(facts: RunFacts) -> str:
    """All charts of a run, as cards."""
    lines = facts.lines
    if len(lines) < 2:
        return '<p class="soft">The run has not logged two lines yet.</p>'
    cards = [_smooth("loss, nats per token", lines, lambda line: line["loss"], "var(--true)")]
    cards += _by_name("loss by task", lines, "loss_by_task")
    cards += _held_out(facts.evaluations)
    cards.append(card("learning rate", _exact(rates(facts.config, lines), "learning rate"), "chart"))
    cards.append(_smooth("norm of the gradients", lines, lambda line: line.get("grad_norm"), "var(--s3)"))
    cards.append(_smooth("tokens per second", lines, _timing("tokens_per_second"), "var(--good)"))
    cards.append(_smooth("images per second", lines, _timing("images_per_second"), "var(--good)"))
    cards.append(_smooth("MFU, %", lines, _timing("mfu", 100), "var(--good)"))
    cards.append(_smooth("waiting for data, % of the time", lines, _timing("data_wait_share", 100), "var(--s2)"))
    return grid(filter(None, cards), wide=True)


def _timing(key: str, factor: float = 1.0) -> Value:
    def value(line: Line) -> float | None:
        number = line["timing"].get(key)
        return None if number is None else factor * number

    return value


def _smooth(title: str, lines: Sequence[Line], value: Value, color: str) -> str:
    """A card with a faint curve and its running mean; empty if there are no two values."""
    points = averaged([(line["step"], _number(value(line))) for line in lines])
    if len(points) < 2:
        return ""
    steps, values = zip(*points, strict=True)
    return card(escape(title), line_chart(steps, values, color=color, smooth=True, label=title), "chart")


def _by_name(title: str, lines: Sequence[Line], key: str) -> list[str]:
    """A card with a curve per name, if there are several."""
    names = list(dict.fromkeys(name for line in lines for name in line.get(key, {})))
    if len(names) < 2:
        return []
    columns = {
        name: averaged([(line["step"], _number(line.get(key, {}).get(name))) for line in lines]) for name in names
    }
    steps = sorted({step for points in columns.values() for step, _ in points})
    values = {name: [dict(points).get(step, math.nan) for step in steps] for name, points in columns.items()}
    return [card(escape(title), lines_chart(steps, values, label=title), "chart")]


def _held_out(evaluations: Sequence[Line]) -> list[str]:
    """A card for the held-out loss, one for its tasks, and one for every benchmark."""
    names = list(dict.fromkeys(name for line in evaluations for name in line if name != "step"))
    groups: dict[str, list[str]] = {}
    for name in names:
        group = name.rpartition("/")[0]
        if group != "loss_by_source":
            groups.setdefault(group or name, []).append(name)
    cards = []
    for group, members in groups.items():
        points = {
            name.rpartition("/")[2]: [
                Measured(float(line["step"]), _number(line[name])) for line in evaluations if name in line
            ]
            for name in members
        }
        if any(len(each) >= 2 for each in points.values()):
            title = f"held out: {group.replace('_', ' ')}"
            cards.append(card(escape(title), bands_chart(points, label=title), "chart"))
    return cards


def rates(config: Config, lines: Sequence[Line]) -> dict[str, list[tuple[float, float]]]:
    """The learning rate of every group over the steps: the full rate, and that of the ViT's lowest layer."""
    full = averaged([(line["step"], _number(line.get("learning_rate"))) for line in lines])
    groups = {"full rate": full}
    decay = config.optimizer.vit_layer_decay
    if "vit" in config.train.trainable and decay < 1:
        factor = decay**config.model.vit.layers
        groups["lowest layer of the ViT"] = [(step, factor * rate) for step, rate in full]
    return groups


def _exact(groups: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Curves as they are, without smoothing."""
    thinned = {name: points[:: max(1, len(points) // _FEW)] for name, points in groups.items()}
    return bands_chart({name: [Measured(x, y) for x, y in points] for name, points in thinned.items()}, label=label)


def averaged(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: each the last step and the mean of the values of successive points.

    Values that are not finite are left out.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    size = -(-len(finite) // most) if finite else 1
    means = []
    for start in range(0, len(finite), size):
        group = finite[start : start + size]
        means.append((float(group[-1][0]), sum(value for _, value in group) / len(group)))
    return means


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
