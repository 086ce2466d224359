"""report.html: one self-contained page about a run, whether it goes on, has ended or was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from qwenvl_jax.config import config_hash, to_dict
from qwenvl_jax.html import page as html_page
from qwenvl_jax.html.tables import Cell, table
from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.training.goodput import ALL_KINDS, LOST, Start, clock
from qwenvl_jax.training.report import timeline
from qwenvl_jax.training.report.curves import curves
from qwenvl_jax.training.report.facts import RunFacts

STYLE = (
    timeline.STYLE
    + """
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); margin-top: 1.4rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.progress { height: 6px; border-radius: 3px; background: var(--wash); margin: 1.1rem 0 0; overflow: hidden; }
.progress div { height: 100%; background: var(--good); border-radius: 3px; }
pre { font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-x: auto; margin: 0; }
summary { cursor: pointer; margin: .6rem 0; } td.reason { white-space: normal; text-align: left; }
"""
)
_LINKS = (
    ("curves", "Curves"),
    ("time", "Time"),
    ("starts", "Starts"),
    ("checkpoints", "Checkpoints"),
    ("data", "Data"),
    ("lineage", "Lineage"),
    ("config", "Config"),
)


def page(facts: RunFacts, now: float | None = None) -> str:
    """The HTML of a report.

    Args:
      facts: of the run.
      now: the time of writing in seconds since 1970; by default that of the system.
    """
    now = time.time() if now is None else now
    config = facts.config
    title = f"{facts.workdir.name}: {config.train.stage} of {config.model.name}"
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    folder = f"<code>{escape(str(facts.workdir))}</code>"
    intro = f"{escape(status(facts, now))} Written {written}, config {config_hash(config)}, in {folder}."
    done = min(1.0, facts.step / config.train.steps)
    progress = f'<div class="progress"><div style="width:{done:.1%}"></div></div>'
    parts = [
        html_page.header(title, intro, _LINKS, progress + _tiles(facts)),
        html_page.section("curves", "Curves", "", curves(facts)),
        html_page.section("time", "Where the time went", "", _time(facts)),
        html_page.section("starts", "Starts", "", _starts(facts, now)),
        html_page.section("checkpoints", "Checkpoints", "", _checkpoints(facts)),
        html_page.section("data", "Data", "What the stage has read since it began.", _data(facts)),
        html_page.section("lineage", "Lineage", "", _lineage(facts.lineage)),
        html_page.section("config", "Config", "", _config(facts)),
    ]
    return html_page.visible(html_page.page(title, "\n".join(parts), style=STYLE))


def status(facts: RunFacts, now: float) -> str:
    """One sentence: how far the run is, and whether it goes on."""
    steps = facts.config.train.steps
    if facts.finished:
        return f"Finished after {steps:,} steps."
    so_far = f"{facts.step:,} of {steps:,} steps."
    if not facts.account.starts:
        return so_far
    last = facts.account.starts[-1]
    if last.code is not None:
        return f"{so_far} The last start ended with code {last.code}: {last.reason}."
    return (
        f"{so_far} The last start runs, or was killed; its last sign of life was {clock(max(0.0, now - last.end))} ago."
    )


def _tiles(facts: RunFacts) -> str:
    """The figures that one looks for first."""
    steps = facts.config.train.steps
    figures = {f"of {steps:,} steps": f"{facts.step:,}"}
    if facts.lines:
        line = facts.lines[-1]
        timing = line["timing"]
        figures["loss"] = f"{line['loss']:.4f}"
        if "seconds_per_step" in timing:
            figures["s per step"] = f"{timing['seconds_per_step']:.3g}"
        for name, key in (("tokens/s", "tokens_per_second"), ("images/s", "images_per_second")):
            if key in timing:
                figures[name] = _short(timing[key])
        if "mfu" in timing:
            figures["MFU"] = f"{timing['mfu']:.1%}"
        if facts.step < steps and "seconds_per_step" in timing:
            figures["left"] = clock((steps - facts.step) * timing["seconds_per_step"])
    if facts.account.total:
        figures["goodput"] = f"{facts.account.goodput:.1%}"
        figures["in all"] = clock(facts.account.total)
        figures["starts"] = str(len(facts.account.starts))
    tiles = [
        f'<div class="tile"><b>{value}</b><span class="soft small">{name}</span></div>'
        for name, value in figures.items()
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _short(value: float) -> str:
    for unit in ("", "k", "M"):
        if value < 1000 or unit == "M":
            break
        value /= 1000
    return f"{value:.3g}{unit}"


def _time(facts: RunFacts) -> str:
    account = facts.account
    if not account.total:
        return '<p class="soft">The run has no ledger.</p>'
    rows = []
    for kind in ALL_KINDS:
        if account.share(kind) >= 0.00005:
            name = Cell(f'<span class="dot {timeline.css_class(kind)}"></span>{escape(kind)}')
            rows.append([name, timeline.MEANINGS[kind], clock(account.seconds[kind]), f"{account.share(kind):.2%}"])
    rows.append(["total", "", clock(account.total), "100.00%"])
    hidden = len(account.starts) - timeline.MOST_ROWS
    note = f"; the newest {timeline.MOST_ROWS} of {len(account.starts)} are drawn" if hidden > 0 else ""
    drawn = (
        f'<p class="soft small">All starts together</p>{timeline.shares(account)}{timeline.legend(account)}'
        f'<p class="soft small">Each start on the clock, from its beginning to its last sign of life{note}</p>'
        f"{timeline.timeline(account)}"
    )
    chart = html_page.card(f"goodput {account.goodput:.1%}", drawn, "chart")
    return chart + table(["kind", "", "time", "share"], rows, text_columns=2, total=True)


def _starts(facts: RunFacts, now: float) -> str:
    starts = facts.account.starts
    if not starts:
        return '<p class="soft">The run has no ledger.</p>'
    rows = []
    for number, start in enumerate(starts):
        lost = sum(interval.seconds.get(LOST, 0.0) for interval in start.intervals)
        facts_of = start.facts
        rows.append(
            [
                str(number + 1),
                time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(start.begin)),
                f"{facts_of.get('processes', '?')} · {facts_of.get('devices', '?')}",
                f"{start.step:,}",
                f"{start.last_step:,}",
                clock(start.end - start.begin),
                clock(lost) if lost else "",
                Cell(_ending(start, last=number + 1 == len(starts)), "reason"),
                timeline.downtime_after(facts.account, number),
            ]
        )
    header = ["", "began, UTC", "processes · devices", "from step", "to step", "lasted", "lost", "ended", "then down"]
    return table(header, rows, text_columns=3)


def _ending(start: Start, *, last: bool) -> str:
    """The exit code of a start with its meaning."""
    if start.code is None:
        return "runs, or was killed" if last else '<b class="bad">killed, or lost</b>'
    names = {code.code: code.name for code in exit_codes.CONTRACT}
    name = names.get(start.code, "unknown")
    style = "" if start.code in (exit_codes.FINISHED, exit_codes.PREEMPTED) else ' class="bad"'
    return f"<b{style}>{start.code} {name}</b> {escape(start.reason)}"


def _checkpoints(facts: RunFacts) -> str:
    if not facts.checkpoints and not facts.damaged:
        return '<p class="soft">There is no finished checkpoint yet.</p>'
    losses = {int(line["step"]): line["loss"] for line in facts.lines}
    held_out = {int(line["step"]): line["loss"] for line in facts.evaluations if "loss" in line}
    rows = [
        [f"{step:,}", *(f"{values[step]:.4f}" if step in values else "" for values in (losses, held_out))]
        for step in facts.checkpoints
    ]
    damaged = ""
    if facts.damaged:
        damaged = f'<p class="bad">Set aside as damaged: {escape(", ".join(facts.damaged))}</p>'
    return table(["step", "loss", "held-out loss"], rows, text_columns=1) + damaged


def _data(facts: RunFacts) -> str:
    """Samples, passes, tokens and losses by source."""
    data = facts.lines[-1].get("data", {}) if facts.lines else {}
    if not data.get("seen"):
        return '<p class="soft">Nothing has been logged yet.</p>'
    taught: dict[str, float] = {}
    for line in facts.lines:
        for name, tokens in line.get("supervised_by_source", {}).items():
            taught[name] = taught.get(name, 0.0) + tokens
    weights = {source.name: source for source in facts.config.data.mixture}
    all_seen = sum(data["seen"].values()) or 1
    all_taught = sum(taught.values()) or 1.0
    rows = []
    for name, seen in data["seen"].items():
        counts = [data.get(key, {}).get(name, 0) for key in ("cut", "dropped", "filtered", "corrupt")]
        task = weights[name].task if name in weights else ""
        rows.append(
            [
                *(name, task, f"{seen:,}", f"{seen / all_seen:.1%}", f"{data.get('epochs', {}).get(name, 0):.2f}"),
                *(f"{taught.get(name, 0):,.0f}", f"{taught.get(name, 0) / all_taught:.1%}"),
                *(f"{count:,}" if count else "" for count in counts),
            ]
        )
    header = ["source", "task", "samples", "share", "passes", "supervised tokens", "share of the loss"]
    sources = table([*header, "cut", "dropped", "filtered", "corrupt"], rows, text_columns=2)
    totals = [
        ("tokens", f"{data.get('tokens', 0):,}"),
        ("images encoded", f"{data.get('images', 0):,}"),
        ("images shared by further samples", f"{data.get('shared', 0):,}"),
        ("fill of rows", f"{data.get('token_fill', 0):.1%}"),
        ("fill of the image budget", f"{data.get('image_fill', 0):.1%}"),
    ]
    return sources + table(["in all", ""], totals)


def _lineage(values: Mapping[str, Any]) -> str:
    if not values:
        return '<p class="soft">The run has not begun.</p>'
    rows = []
    for component, entry in values["components"].items():
        chain = " ← ".join(_ancestors(entry.get("from")))
        rows.append([component, "trained" if entry.get("trained") else "frozen", Cell(escape(chain), "reason")])
    moves = "".join(f"<li>{escape(json.dumps(move))}</li>" for move in values.get("moves", []))
    vocabulary = f'<p class="small soft">Vocabulary <code>{escape(str(values.get("vocabulary", "")))}</code></p>'
    moved = f'<p class="small soft">Paths that moved</p><ul class="small">{moves}</ul>' if moves else ""
    return table(["component", "", "from"], rows, text_columns=3) + vocabulary + moved


def _ancestors(origin: Mapping[str, Any] | None) -> list[str]:
    """A component's history, the nearest ancestor first."""
    chain: list[str] = []
    while isinstance(origin, Mapping) and len(chain) < 20:
        at = f" step {origin['step']}" if "step" in origin else ""
        path = f" ({origin['path']})" if "path" in origin else ""
        chain.append(f"{origin.get('stage', '?')}{at}{path}")
        origin = origin.get("from")
    return chain


def _config(facts: RunFacts) -> str:
    """The resolved config, folded by group."""
    return "".join(
        f"<details><summary>{escape(name)}</summary>"
        f"<pre>{escape(json.dumps(group, indent=2, ensure_ascii=False))}</pre></details>"
        for name, group in to_dict(facts.config).items()
    )
