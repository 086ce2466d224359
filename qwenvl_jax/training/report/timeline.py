"""Where the time of a run went, as SVG: one bar of shares, and a row per start on a common axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from qwenvl_jax.training.goodput import ALL_KINDS, DOWN, Account, Start, clock

WIDTH = 960
_NAMES = 34  # room for the number of a start
_RIGHT = 8
_BAR = 26  # height of the bar of shares
_ROW, _GAP = 18, 5
_AXIS = 22
_COLUMN = 2.0  # px; a start is cut into columns of about this width
MOST_ROWS = 60  # of the newest starts
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_TICKS = 6

STYLE = """
.k-step { --kind: #2f9e44; } .k-data { --kind: #f59f00; } .k-compilation { --kind: #7048e8; }
.k-initialisation { --kind: #74c0fc; } .k-checkpoint { --kind: #1098ad; } .k-evaluation { --kind: #1c7ed6; }
.k-other { --kind: #868e96; } .k-lost-work { --kind: #e03131; } .k-downtime { --kind: #ced4da; }
@media (prefers-color-scheme: dark) {
  .k-step { --kind: #51cf66; } .k-initialisation { --kind: #339af0; } .k-compilation { --kind: #9775fa; }
  .k-evaluation { --kind: #74c0fc; } .k-downtime { --kind: #495057; } .k-lost-work { --kind: #ff6b6b; }
}
.timeline rect { fill: var(--kind); } .timeline .lane { fill: var(--wash); }
.kinds { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0 .3rem; font-size: .84rem; }
.kinds span::before, td .dot { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 3px;
  background: var(--kind); margin-right: .45em; }
"""


def css_class(kind: str) -> str:
    """The CSS class of a kind of work."""
    return f"k-{kind.replace(' ', '-')}"


def legend(account: Account) -> str:
    """The colours of the kinds that took time."""
    kinds = [kind for kind in ALL_KINDS if account.seconds[kind] > 0]
    return f'<div class="kinds">{"".join(f"<span class={css_class(kind)!r}>{kind}</span>" for kind in kinds)}</div>'


def shares(account: Account) -> str:
    """One bar with the share of every kind; empty without any time."""
    if not account.total:
        return ""
    parts = []
    x = 0.0
    for kind in ALL_KINDS:
        width = WIDTH * account.share(kind)
        if width > 0:
            parts.append(_rect(kind, x, 0, width, _BAR, f"{kind}: {account.share(kind):.1%}"))
        x += width
    return _svg(_BAR, "shares of the time", parts)


def timeline(account: Account) -> str:
    """A row per start, at the times at which it ran; empty without a start.

    Of a moment that is shorter than a column, every kind has its share of the column's height.
    """
    starts = list(enumerate(account.starts, start=1))[-MOST_ROWS:]
    if not starts:
        return ""
    begin = min(start.begin for _, start in starts)
    end = max(max(start.end for _, start in starts), begin + 1e-3)
    scale = (WIDTH - _NAMES - _RIGHT) / (end - begin)
    parts = []
    for row, (number, start) in enumerate(starts):
        y = row * (_ROW + _GAP)
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 13}" text-anchor="end">{number}</text>')
        parts.append(f'<rect class="lane" x="{_NAMES}" y="{y}" width="{WIDTH - _NAMES - _RIGHT}" height="{_ROW}"/>')
        parts += _row(start, _NAMES + (start.begin - begin) * scale, y, scale)
    height = len(starts) * (_ROW + _GAP)
    parts += _axis(end - begin, scale, height)
    return _svg(height + _AXIS, "work over time, by start", parts)


def _row(start: Start, x: float, y: float, scale: float) -> list[str]:
    """The columns of one start; neighbours with one kind alone are drawn as one."""
    parts: list[str] = []
    merged: tuple[str, float, float] | None = None  # kind, left and right edge
    for left, right, seconds in columns(start, _COLUMN / scale):
        total = sum(seconds.values()) or 1.0
        first = x + left * scale
        last = x + right * scale
        kinds = [kind for kind in ALL_KINDS if seconds.get(kind, 0.0) / total > 0.02]
        if len(kinds) == 1:
            if merged and merged[0] == kinds[0]:
                merged = (kinds[0], merged[1], last)
                continue
            parts += _merged(merged, y)
            merged = (kinds[0], first, last)
            continue
        parts += _merged(merged, y)
        merged = None
        top = y + float(_ROW)
        for kind in kinds:
            height = _ROW * seconds[kind] / total
            top -= height
            parts.append(_rect(kind, first, top, max(last - first, 0.6), height, f"{kind} {seconds[kind] / total:.0%}"))
    return parts + _merged(merged, y)


def _merged(merged: tuple[str, float, float] | None, y: float) -> list[str]:
    if merged is None:
        return []
    kind, first, last = merged
    return [_rect(kind, first, y, max(last - first, 0.6), _ROW, kind)]


def columns(start: Start, width: float) -> list[tuple[float, float, Mapping[str, float]]]:
    """The intervals of a start, joined until they are at least `width` seconds long, which a long one exceeds.

    Returns:
      (seconds from the start to the left edge, to the right edge, seconds by kind).
    """
    joined: list[tuple[float, float, dict[str, float]]] = []
    for interval in start.intervals:
        begin = interval.begin - start.begin
        end = interval.end - start.begin
        if joined and joined[-1][1] - joined[-1][0] < width:
            left, _, seconds = joined[-1]
            for kind, value in interval.seconds.items():
                seconds[kind] = seconds.get(kind, 0.0) + value
            joined[-1] = (left, end, seconds)
        else:
            joined.append((begin, end, dict(interval.seconds)))
    return [(left, right, seconds) for left, right, seconds in joined]


def _axis(seconds: float, scale: float, y: float) -> list[str]:
    """Ticks of round times below the rows."""
    unit, name = next(((size, name) for size, name in _UNITS if seconds >= 2 * size), _UNITS[-1])
    step = _round_step(seconds / unit / _TICKS)
    parts = []
    for tick in range(int(seconds / unit / step) + 1):
        x = _NAMES + tick * step * unit * scale
        label = f"{tick * step:g} {name}" if tick else "0"
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{y}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 14}" text-anchor="{"middle" if tick else "start"}">{label}</text>')
    return parts


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, .. and their tenths that is at least `least`."""
    power = 0.1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str) -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{css_class(kind)}" {size}><title>{escape(title)}</title></rect>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    start = f'<svg class="timeline" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return start + "".join(parts) + "</svg>"


def downtime_after(account: Account, number: int) -> str:
    """The time between start `number`, counted from 0, and the next one; "" after the last."""
    if number + 1 >= len(account.starts):
        return ""
    return clock(max(0.0, account.starts[number + 1].begin - account.starts[number].end))


MEANINGS = {
    "step": "the devices take steps that count",
    "data": "the loop waits for the next batch",
    "compilation": "the loop waits for the first step to be compiled",
    "initialisation": "everything before the first batch",
    "checkpoint": "the loop waits for a checkpoint",
    "evaluation": "the loop waits for an evaluation",
    "other": "profiles, and what follows the last step",
    "lost work": "steps that a later start took again",
    DOWN: "between two starts",
}
