"""Line charts with or without bands, histograms and funnels as inline SVG, in the colours of the page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from qwenvl_jax.html.style import PALETTE

WIDTH = 480
LINE_HEIGHT = 200
HISTOGRAM_HEIGHT = 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 26  # margins of a line chart
_SIDE, _ROOF, _FLOOR = 4, 18, 24  # margins of a histogram
_MIN_BARS = 6  # a histogram leaves room for this many, so that few bars do not become walls
_MAX_LABELS = 8  # under the bars
_DIGIT = 7  # width of a character under a bar
FUNNEL_WIDTH = 960
_FUNNEL_ROW = 22  # height of a bar with its gap
_NAMES, _COUNTS = 190, 190  # room for the names and for the counts of a funnel
_NAME_LENGTH = 32  # characters of a step's name that are shown
_TOO_FEW = '<p class="soft small">too few steps to draw</p>'


def _svg(height: int, label: str, parts: Sequence[str], width: int = WIDTH) -> str:
    start = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return start + "".join(parts) + "</svg>"


def line_chart(
    steps: Sequence[float], values: Sequence[float], *, color: str, smooth: bool = False, label: str = "value"
) -> str:
    """One curve over training steps.

    Args:
      steps: the horizontal axis.
      values: one per step; values that are not finite are left out.
      color: a CSS colour.
      smooth: draw the curve faintly and its running mean on top.
      label: describes the curve to screen readers.

    Returns:
      An `<svg>` element, or a note if fewer than two values are finite.
    """
    points = _finite_points(steps, values)
    if len(points) < 2:
        return _TOO_FEW
    axes = _Axes.around(points)
    curve = axes.to_pixels(points)
    if not smooth:
        return _svg(LINE_HEIGHT, label, [*axes.drawn(), _path(curve, color, opacity=1.0, width=2)])
    faint = _path(curve, color, opacity=0.35, width=1.2)
    mean = _path(axes.to_pixels(_smoothed(points)), color, opacity=1.0, width=2.2)
    return _svg(LINE_HEIGHT, label, [*axes.drawn(), faint, mean])


def lines_chart(steps: Sequence[float], curves: Mapping[str, Sequence[float]], *, label: str) -> str:
    """The running means of several curves over training steps on the same axes, with a legend below.

    Args:
      steps: the horizontal axis.
      curves: the values of each curve by its name, one per step; values that are not finite are left out, and so is a
        curve with fewer than two others.
      label: describes the chart to screen readers.

    Returns:
      An `<svg>` element and a paragraph, or a note if there is no curve to draw.
    """
    named = {name: _finite_points(steps, values) for name, values in curves.items()}
    drawn = {name: _smoothed(points) for name, points in named.items() if len(points) >= 2}
    if not drawn:
        return _TOO_FEW
    axes = _Axes.around([point for points in drawn.values() for point in points])
    parts = axes.drawn()
    legend = []
    for number, (name, points) in enumerate(drawn.items()):
        color = PALETTE[number % len(PALETTE)]
        dashes = "6 4" if number >= len(PALETTE) else ""
        parts.append(_path(axes.to_pixels(points), color, opacity=1.0, width=2, dashes=dashes))
        legend.append(_legend_entry(name, color, dashes))
    return _svg(LINE_HEIGHT, label, parts) + _legend(legend)


def _legend_entry(name: str, color: str, dashes: str) -> str:
    return f'<span style="color:{color}">{"┅" if dashes else "━"}</span>&nbsp;{escape(name)}'


def _legend(entries: Sequence[str]) -> str:
    return f'<p class="soft small">{" &ensp; ".join(entries)}</p>'


class Measured(NamedTuple):
    """A point of a curve with its interval; NaN if it has none."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


def bands_chart(curves: Mapping[str, Sequence[Measured]], *, label: str) -> str:
    """Measured curves with their intervals as bands around them, on the same axes, with a legend below.

    Args:
      curves: the points of each curve by its name, in the order of `x`; points that are not finite are left out, and so
        is a curve with fewer than two others.
      label: describes the chart to screen readers.

    Returns:
      An `<svg>` element and a paragraph, or a note if there is no curve to draw.
    """
    finite = {name: [p for p in points if math.isfinite(p.x + p.y)] for name, points in curves.items()}
    drawn = {name: points for name, points in finite.items() if len(points) >= 2}
    if not drawn:
        return _TOO_FEW
    edges = [(p.x, y) for points in drawn.values() for p in points for y in (p.low, p.y, p.high) if math.isfinite(y)]
    axes = _Axes.around(edges)
    parts = axes.drawn()
    legend = []
    for number, (name, points) in enumerate(drawn.items()):
        color = PALETTE[number % len(PALETTE)]
        dashes = "6 4" if number >= len(PALETTE) else ""
        known = [p for p in points if math.isfinite(p.low + p.high)]
        if known:
            outline = axes.to_pixels([*((p.x, p.high) for p in known), *((p.x, p.low) for p in reversed(known))])
            parts.append(f'<polygon points="{_joined(outline)}" fill="{color}" fill-opacity="0.15"/>')
        curve = axes.to_pixels([(p.x, p.y) for p in points])
        parts.append(_path(curve, color, opacity=1.0, width=2, dashes=dashes))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in curve]
        legend.append(_legend_entry(name, color, dashes))
    return _svg(LINE_HEIGHT, label, parts) + _legend(legend)


Points = list[tuple[float, float]]


def _finite_points(steps: Sequence[float], values: Sequence[float]) -> Points:
    return [(float(x), float(y)) for x, y in zip(steps, values, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _smoothed(points: Points) -> Points:
    """The points with the running mean of their values."""
    means = running_mean([y for _, y in points], max(1, len(points) // 12))
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Axes:
    """The axes of a line chart.

    Attributes:
      first, last: the steps at the left and at the right edge.
      low, high: the values at the bottom and at the top.
      ticks: the values that are labelled.
    """

    first: float
    last: float
    low: float
    high: float
    ticks: list[float]

    @staticmethod
    def around(points: Points) -> _Axes:
        """Axes that contain all points."""
        steps = [x for x, _ in points]
        values = [y for _, y in points]
        ticks = nice_ticks(min(values), max(values), 4)
        return _Axes(min(steps), max(steps), min(*values, ticks[0]), max(*values, ticks[-1]), ticks)

    def to_pixels(self, points: Points) -> Points:
        """The points in the coordinates of the `<svg>` element."""
        width = WIDTH - _LEFT - _RIGHT
        height = LINE_HEIGHT - _TOP - _BOTTOM
        pixels = []
        for x, y in points:
            across = (x - self.first) / (self.last - self.first or 1)
            up = (y - self.low) / (self.high - self.low or 1)
            pixels.append((_LEFT + across * width, LINE_HEIGHT - _BOTTOM - up * height))
        return pixels

    def drawn(self) -> list[str]:
        """The lines and labels of the axes."""
        parts = []
        for tick, (_, y) in zip(self.ticks, self.to_pixels([(self.first, tick) for tick in self.ticks]), strict=True):
            parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
        steps = [self.first, (self.first + self.last) / 2, self.last]
        pixels = self.to_pixels([(step, self.low) for step in steps])
        for step, (x, _), anchor in zip(steps, pixels, ("start", "middle", "end"), strict=True):
            parts.append(f'<text x="{x:.1f}" y="{LINE_HEIGHT - 8}" text-anchor="{anchor}">{short(step)}</text>')
        return parts


def _joined(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _path(points: Points, color: str, opacity: float, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<polyline points="{_joined(points)}" fill="none" stroke="{color}" stroke-opacity="{opacity}" '
        f'stroke-width="{width}" stroke-linejoin="round" stroke-linecap="round"{dashed}/>'
    )


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar of a histogram.

    Attributes:
      first, last: the values that it counts, both included.
      count: how many items have such a value.
      marked: how many of these are drawn in the colour of a warning, at the top of the bar.
      label: below the bar instead of `first`.
    """

    first: int
    last: int
    count: int
    marked: int = 0
    label: str = ""


def histogram(bars: Sequence[Bar], limit: int, *, label: str) -> str:
    """Bars with their counts above them.

    Args:
      bars: in the order of their values, without gaps. A last bar may hold all values above the limit.
      limit: the largest value that is allowed; a bar above it is labelled "over" the limit.
      label: describes the chart to screen readers.
    """
    highest = max((bar.count for bar in bars), default=0) or 1
    step = (WIDTH - 2 * _SIDE) / max(len(bars), _MIN_BARS)
    scale = (HISTOGRAM_HEIGHT - _FLOOR - _ROOF) / highest
    stride = -(-len(bars) // _MAX_LABELS)  # every so many bars carry a label
    baseline = HISTOGRAM_HEIGHT - _FLOOR
    label_y = HISTOGRAM_HEIGHT - 8
    parts = []
    for index, bar in enumerate(bars):
        x = _SIDE + index * step
        y = float(baseline)
        for style, count in (("bar-plain", bar.count - bar.marked), ("bar-marked", bar.marked)):
            y -= count * scale
            if count:
                size = f'width="{step - 2:.1f}" height="{count * scale:.1f}"'
                parts.append(f'<rect class="{style}" x="{x + 1:.1f}" y="{y:.1f}" {size}/>')
        middle = f'x="{x + step / 2:.1f}" text-anchor="middle"'
        if bar.count:
            parts.append(f'<text {middle} y="{y - 4:.1f}">{short_count(bar.count)}</text>')
        if bar.first > limit:
            parts.append(f'<text x="{WIDTH - _SIDE}" text-anchor="end" y="{label_y}">over {limit}</text>')
        # Labels at the end are left out if they would run into "over".
        elif index % stride == 0 and (index + stride < len(bars) or bars[-1].first <= limit):
            name = bar.label or str(bar.first)
            anchor = middle if bar.first == bar.last else f'x="{x + 1:.1f}"'  # a wide bar begins at its label
            if x + len(name) * _DIGIT > WIDTH - _SIDE:
                anchor = f'x="{WIDTH - _SIDE}" text-anchor="end"'
            parts.append(f'<text {anchor} y="{label_y}">{escape(name)}</text>')
    parts.append(f'<line class="rule" x1="{_SIDE}" x2="{WIDTH - _SIDE}" y1="{baseline}" y2="{baseline}"/>')
    return _svg(HISTOGRAM_HEIGHT, label, parts)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a funnel.

    Attributes:
      name: shown to the left of its bar.
      left: how many items remain after it.
      removed: how many it takes away.
    """

    name: str
    left: int
    removed: int = 0


def funnel(steps: Sequence[Step], *, label: str) -> str:
    """A bar per step, from top to bottom: what remains, followed by what the step removes in the colour of a warning.

    Args:
      steps: in order; the longest bar fills the width.
      label: describes the chart to screen readers.
    """
    width = FUNNEL_WIDTH - _NAMES - _COUNTS
    scale = width / (max((step.left + step.removed for step in steps), default=0) or 1)
    parts = []
    for number, step in enumerate(steps):
        y = number * _FUNNEL_ROW
        name = step.name if len(step.name) <= _NAME_LENGTH else step.name[: _NAME_LENGTH - 1] + "…"
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        x = float(_NAMES)
        for style, count in (("bar-plain", step.left), ("bar-marked", step.removed)):
            if count:
                size = f'width="{max(1.0, count * scale):.1f}" height="{_FUNNEL_ROW - 6}"'
                parts.append(f'<rect class="{style}" x="{x:.1f}" y="{y + 3}" {size}/>')
                x += max(1.0, count * scale)
        counts = f"{step.left:,}" + (f" (-{step.removed:,})" if step.removed else "")
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{counts}</text>')
    return _svg(len(steps) * _FUNNEL_ROW + 4, label, parts, FUNNEL_WIDTH)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    means = []
    for index in range(len(values)):
        window = values[max(0, index - reach) : index + reach + 1]
        means.append(sum(window) / len(window))
    return means


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers covering [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    start = math.floor(low / step + 1e-9)
    end = math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(start, end + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 1500, 0.25, 2e-4."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 0.001 <= abs(value) < 100_000:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def short_count(count: int) -> str:
    """A count as it is written above a bar: 9999, 12k, 1.2M, 34B."""
    if count < 10_000:
        return str(count)
    for unit, size in (("k", 10**3), ("M", 10**6), ("B", 10**9)):
        if count < 1000 * size or unit == "B":
            break
    tenths = count * 10 // size
    return f"{tenths // 10}.{tenths % 10}{unit}" if tenths < 100 else f"{tenths // 10}{unit}"
