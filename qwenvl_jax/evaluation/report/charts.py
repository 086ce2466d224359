"""Line charts as inline SVG, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT = 480, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 26


def line_chart(
    steps: Sequence[float], values: Sequence[float], *, color: str, smooth: bool = False, label: str = "value"
) -> str:
    """One curve over training steps.

    Args:
      steps: the horizontal axis.
      values: as many; those that are not finite are left out.
      color: a CSS colour.
      smooth: draw the curve faintly and its running mean on top.
      label: what the curve is, for screen readers.

    Returns:
      An `<svg>` element; a note where there is nothing to draw.
    """
    points = [(float(x), float(y)) for x, y in zip(steps, values, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return '<p class="soft small">too few steps to draw</p>'
    low, high = min(y for _, y in points), max(y for _, y in points)
    ticks = nice_ticks(low, high, 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first or 1)
        up = (y - low) / (high - low or 1)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in ticks:
        _, y = place(first, tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick, anchor in ((first, "start"), ((first + last) / 2, "middle"), (last, "end")):
        x, _ = place(tick, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(tick)}</text>')
    parts.append(_path([place(x, y) for x, y in points], color, 0.35 if smooth else 1.0, 1.2 if smooth else 2))
    if smooth:
        means = running_mean([y for _, y in points], max(1, len(points) // 12))
        smoothed = [place(x, mean) for (x, _), mean in zip(points, means, strict=True)]
        parts.append(_path(smoothed, color, 1.0, 2.2))
    return "".join(parts) + "</svg>"


def _path(points: Sequence[tuple[float, float]], color: str, opacity: float, width: float) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-opacity="{opacity}" '
        f'stroke-width="{width}" stroke-linejoin="round" stroke-linecap="round"/>'
    )


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    means = []
    for at in range(len(values)):
        window = values[max(0, at - reach) : at + reach + 1]
        means.append(sum(window) / len(window))
    return means


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers covering [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(start, end + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 1500, 0.25, 2e-4."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 0.001 <= abs(value) < 100_000:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
