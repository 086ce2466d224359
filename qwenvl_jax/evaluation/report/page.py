"""report.html: curves, scores and held-out examples of an evaluation on one self-contained page."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import layout
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED
from qwenvl_jax.evaluation.config import CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.report import sections
from qwenvl_jax.evaluation.results.layout import SCORES, read_config
from qwenvl_jax.evaluation.results.progress import unfinished
from qwenvl_jax.html.charts import line_chart, lines_chart, short
from qwenvl_jax.html.page import bullets, card, grid, header, page, section
from qwenvl_jax.html.tables import Cell, table
from qwenvl_jax.runtime import artifacts, storage

# Besides the style that all reports share.
STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: .8rem; margin: 1.8rem 0 0; }
.tile { padding: .9rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  break-inside: avoid; }
.tile b { display: block; font-size: 1.75rem; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
td.best { font-weight: 700; }
td .up { color: var(--good); } td .down { color: var(--bad); }
td small { display: block; font-size: .74rem; color: var(--soft); }
.bar { display: block; height: 3px; margin-top: .3rem; border-radius: 2px; background: var(--wash); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--predicted); }
"""
# The titles of the figures in scores.json.
TITLES = {
    "referring_acc": "Referring boxes",
    "ocr_char_acc": "OCR characters",
    "vqa_score": "VQA score",
    "vqa_acc": "Question answers",
    "caption_cider": "Caption CIDEr",
    "caption_cider_ptb": "Caption CIDEr (PTB)",
    "dialogue_acc": "Dialogue turns",
}
_METRIC_NOTES = {
    "referring_acc": "IoU ≥ 0.5",
    "ocr_char_acc": "1 − edits / characters",
    "vqa_score": "classic evaluator, annotators agree",
    "vqa_acc": "exact match",
    "caption_cider": "1.0 = 100 in papers; simple tokens",
    "caption_cider_ptb": "1.0 = 100 in papers; official tokens",
    "dialogue_acc": "right words or boxes",
}


def write_report(output: epath.PathLike) -> epath.Path:
    """Writes `<output>/report.html` from evaluation.json, scores.json, the predictions and the runs' metrics.

    Benchmarks that a killed sweep has not finished are named. The figures on top are those of the last checkpoint that
    has one.

    Raises:
      UserError: if no evaluation has begun in this folder.
    """
    output = storage.path(output)
    config = read_config(output)
    scores = artifacts.read_json(output / SCORES) if storage.exists(output / SCORES) else {}
    remaining = unfinished(output)
    left_out = {(each.checkpoint, each.label) for each in remaining}
    held_out = [task for task in config.benchmarks if task.name in sections.SECTIONS]
    names = [item.name for item in config.checkpoints]
    begun = [name for name in names if any((name, task.label) not in left_out for task in held_out)]
    last = (begun or names)[-1]
    parts = [_header(config, last, scores), sections.unfinished_section(remaining), _score_section(config, scores)]
    parts += [_unanswered(scores), _training(config)]
    finished = [task for task in held_out if (last, task.label) not in left_out]
    for name, render in sections.SECTIONS.items():
        parts += [render(sections.load(task, output, last)) for task in finished if task.name == name]
    parts.append(_release(output))
    content = "\n".join(part for part in parts if part)
    artifacts.write_text(output / "report.html", page("Qwen-VL in JAX · report", content, style=STYLE + sections.STYLE))
    return output / "report.html"


def _header(config: EvalConfig, last: str, scores: dict[str, dict[str, Any]]) -> str:
    """The top of the page, with the figures of the checkpoint `last`."""
    tiles = "".join(
        f'<div class="tile"><span class="soft small">{html.escape(_title(key))}</span><b>{scores[last][key]:.2f}</b>'
        f'<span class="soft small">{_METRIC_NOTES[key.rpartition(".")[2]]}</span></div>'
        for key in config.headlines
        if key in scores.get(last, {})
    )
    links = [("scores", "Scores"), ("training", "Training")]
    for name in sections.SECTIONS:
        links += [sections.name_and_title(task) for task in config.benchmarks if task.name == name]
    stages = len(config.checkpoints)
    intro = (
        f"{stages} stage{'s' if stages > 1 else ''} of training, scored on held-out records that no stage has seen. "
        f"Figures on top and examples below are those of <code>{html.escape(last)}</code>; examples are the first of "
        "the held-out set, not chosen."
    )
    return header("Qwen-VL, trained from nothing", intro, links, f'<div class="tiles">{tiles}</div>')


def _title(key: str) -> str:
    """Of a figure in scores.json; that of a benchmark with a label of its own is `label.figure`."""
    label, _, figure = key.rpartition(".")
    return f"{label}: {TITLES[figure].lower()}" if label else TITLES[figure]


def _score_section(config: EvalConfig, scores: dict[str, dict[str, Any]]) -> str:
    keys = [key for key in config.headlines if any(key in row for row in scores.values())]
    best = {key: max(row.get(key, 0.0) for row in scores.values()) for key in keys}
    lines: list[list[object]] = []
    before: dict[str, float] = {}
    ranges = {(known.checkpoint, known.figure): (known.low, known.high) for known in config.spread}
    spread = {(name, key): ranges[name, key] for name in scores for key in keys if (name, key) in ranges}
    for name, row in scores.items():
        cells = [_score_cell(row.get(key), before.get(key), best[key], spread.get((name, key))) for key in keys]
        lines.append([_readable(name), *cells])
        before = row
    intro = (
        "Every checkpoint answers the same held-out questions; the small figure is the change from the stage before."
    )
    if spread:
        intro += " The range under a score is that of earlier runs, which differ in chance alone."
    return section("scores", "Scores", intro, table(["after stage", *map(_title, keys)], lines))


def _unanswered(scores: dict[str, dict[str, Any]]) -> str:
    """The questions that could not be asked, by name; empty if all could."""
    total = 0
    entries = []
    for name, row in scores.items():
        for task, missing in row.get(UNANSWERED, {}).items():
            total += missing["questions"]
            for question in missing["first"]:
                text = ", ".join((_readable(name), task, question["id"], question["why"]))
                entries.append(html.escape(text))
    if not entries:
        return ""
    intro = (
        f"{total} questions could not be asked, because their record or picture cannot be read. They count as wrong. "
        "The first ones:"
    )
    return section("unanswered", "Not answered", intro, bullets(entries))


def _score_cell(
    value: float | None, before: float | None, best: float, spread: tuple[float, float] | None = None
) -> Cell:
    if value is None:
        return Cell("")
    change = "&nbsp;"
    if before is not None and round(value - before, 3):
        kind, sign = ("up", "+") if value > before else ("down", "−")
        change = f'<span class="{kind}">{sign}{abs(value - before):.3f}</span>'
    filled = 100 * value / best if best > 0 else 0
    bar = f'<span class="bar"><i style="width:{filled:.0f}%"></i></span>'
    known = f"<small>{spread[0]:.3f} – {spread[1]:.3f}</small>" if spread else ""
    return Cell(f"{value:.3f}<small>{change}</small>{bar}{known}", "best" if value == best and best > 0 else "")


def _readable(name: str) -> str:
    """stage2_multitask -> 2 · multitask."""
    stage, _, rest = name.partition("_")
    return f"{stage.removeprefix('stage')} · {rest}" if stage.startswith("stage") and rest else name


def _training(config: EvalConfig) -> str:
    cards: list[str] = []
    for number, item in enumerate(config.checkpoints):
        rows = _metrics(item)
        if rows:
            cards += _curves(_readable(item.name), rows, color=f"var(--s{number % 4})")
    if not cards:
        return ""
    intro = "Loss per supervised token and learning rate over the steps of every stage, and the loss of every task."
    return section("training", "Training", intro, grid(cards, wide=True))


def _curves(name: str, rows: list[dict[str, Any]], color: str) -> list[str]:
    """The loss, the learning rate and, if there are several tasks, their losses in one run, a card each."""
    steps = [row["step"] for row in rows]
    losses = [row.get("loss", math.nan) for row in rows]
    rates = [row.get("learning_rate", math.nan) for row in rows]
    peak = max(filter(math.isfinite, rates), default=math.nan)
    cards = []
    for title, note, values in (
        ("loss", f"last {losses[-1]:.3f}", losses),
        ("learning rate", f"peak {short(peak)}", rates),
    ):
        chart = line_chart(steps, values, color=color, smooth=values is losses, label=f"{name}: {title}")
        cards.append(_chart_card(name, f"{title}, {note}", chart))
    by_task = _losses_by_task(rows)
    if len(by_task) > 1:
        chart = lines_chart(steps, by_task, label=f"{name}: loss by task")
        cards.append(_chart_card(name, "loss by task, running mean", chart))
    return cards


def _chart_card(name: str, title: str, chart: str) -> str:
    return card(f'{html.escape(name)} <span class="soft">{title}</span>', chart, "chart")


def _losses_by_task(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The loss of each task at every row; NaN if it has none there, as in rows of earlier versions."""
    losses = [row.get("loss_by_task", {}) for row in rows]
    tasks = dict.fromkeys(task for by_task in losses for task in by_task)
    return {task: [_number(by_task.get(task)) for by_task in losses] for task in tasks}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _metrics(item: CheckpointConfig) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl by step. If a restart repeated a step, its last row counts."""
    path = storage.path(item.workdir) / layout.METRICS
    if not storage.exists(path):
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in storage.read_bytes(path).decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a killed run was writing
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _release(output: epath.Path) -> str:
    parity = output / "release" / "parity.json"
    if not storage.exists(parity):
        return ""
    report = artifacts.read_json(parity)
    return (
        "<footer><p class='small soft'>Released to PyTorch: "
        f"{report['tensors']} tensors; over {report['prompts']} prompts the logits of both differ by at most "
        f"{report['logits_relative_error']:.1e} (relative, {report['compared_in']}), image embeddings by "
        f"{report['image_embedding_relative_error']:.1e}, greedy text "
        f"{'is equal' if report['greedy_equal'] else 'DIFFERS'}.</p></footer>"
    )
