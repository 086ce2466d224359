"""report.html: curves, scores and held-out examples on one self-contained page, from what an evaluation left."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from etils import epath

from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation.config import HEADLINES, UNANSWERED, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.report import sections
from qwenvl_jax.evaluation.report.charts import line_chart, short
from qwenvl_jax.evaluation.report.style import CSS
from qwenvl_jax.evaluation.sweep import EVALUATION, SCORES
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import metrics

# What a reader sees for a figure of scores.json.
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

    Raises:
      UserError: if the folder is not one that an evaluation finished in.
    """
    output = storage.path(output)
    if not storage.exists(output / EVALUATION):
        raise UserError(f"{output} holds no {EVALUATION}; run `python -m qwenvl_jax.evaluate --config=..` first")
    config = from_config_dict(EvalConfig, artifacts.read_json(output / EVALUATION), str(output / EVALUATION))
    scores = artifacts.read_json(output / SCORES)
    last = config.checkpoints[-1]
    parts = [_header(config, scores), _score_section(scores), _unanswered(scores), _training(config)]
    shown = {task.name: sections.load(task, output, last.name) for task in config.tasks}
    for name, render in sections.SECTIONS.items():
        if name in shown:
            parts.append(render(shown[name]))
    parts.append(_release(output))
    body = "\n".join(part for part in parts if part)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Qwen-VL in JAX · report</title>\n<style>{CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
    artifacts.write_text(output / "report.html", page)
    return output / "report.html"


def _header(config: EvalConfig, scores: dict[str, dict[str, Any]]) -> str:
    last = config.checkpoints[-1].name
    tiles = "".join(
        f'<div class="tile"><span class="soft small">{TITLES[key]}</span><b>{scores[last][key]:.2f}</b>'
        f'<span class="soft small">{_METRIC_NOTES[key]}</span></div>'
        for key in HEADLINES
        if key in scores.get(last, {})
    )
    links = [("scores", "Scores"), ("training", "Training"), *((n, t) for n, t in sections.TITLES.items())]
    wanted = {"scores", "training", *(task.name for task in config.tasks)}
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, title in links if name in wanted)
    return (
        "<header><h1>Qwen-VL, trained from nothing</h1>"
        f'<p class="soft">{len(config.checkpoints)} stages of training, each scored on held-out records that no stage '
        f"has seen. Figures on top and examples below are those of <code>{html.escape(last)}</code>; examples are the "
        f"first of the held-out set, not chosen.</p><nav>{nav}</nav><div class='tiles'>{tiles}</div></header>"
    )


def _score_section(scores: dict[str, dict[str, Any]]) -> str:
    keys = [key for key in HEADLINES if any(key in row for row in scores.values())]
    head = "".join(f"<th>{TITLES[key]}</th>" for key in keys)
    best = {key: max(row.get(key, 0.0) for row in scores.values()) for key in keys}
    rows = []
    before: dict[str, float] = {}
    for name, row in scores.items():
        cells = "".join(_score_cell(row.get(key), before.get(key), best[key]) for key in keys)
        rows.append(f"<tr><td>{html.escape(_readable(name))}</td>{cells}</tr>")
        before = row
    return (
        '<section id="scores"><h2>Scores</h2><p class="soft">Every checkpoint answers the same held-out questions; the '
        "small figure is the change from the stage before.</p>"
        f'<div class="scroll"><table><thead><tr><th>after stage</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _unanswered(scores: dict[str, dict[str, Any]]) -> str:
    """The questions that could not be asked, by name; nothing where all could."""
    entries = [
        f"<li>{html.escape(', '.join((_readable(name), task, one['id'], one['why'])))}</li>"
        for name, row in scores.items()
        for task, missing in row.get(UNANSWERED, {}).items()
        for one in missing["first"]
    ]
    if not entries:
        return ""
    total = sum(missing["questions"] for row in scores.values() for missing in row.get(UNANSWERED, {}).values())
    return (
        f'<section id="unanswered"><h2>Not answered</h2><p class="soft">{total} questions could not be asked, because '
        "their record or picture cannot be read. They count as wrong. The first of them:</p>"
        f'<ul class="small">{"".join(entries)}</ul></section>'
    )


def _score_cell(value: float | None, before: float | None, best: float) -> str:
    if value is None:
        return "<td></td>"
    change = "&nbsp;"
    if before is not None and round(value - before, 3):
        kind, sign = ("up", "+") if value > before else ("down", "−")
        change = f'<span class="{kind}">{sign}{abs(value - before):.3f}</span>'
    filled = 100 * value / best if best > 0 else 0
    mark = ' class="best"' if value == best and best > 0 else ""
    return (
        f'<td{mark}>{value:.3f}<small>{change}</small><span class="bar"><i style="width:{filled:.0f}%"></i></span></td>'
    )


def _readable(name: str) -> str:
    """stage2_multitask -> 2 · multitask."""
    stage, _, rest = name.partition("_")
    return f"{stage.removeprefix('stage')} · {rest}" if stage.startswith("stage") and rest else name


def _training(config: EvalConfig) -> str:
    cards = []
    for number, item in enumerate(config.checkpoints):
        rows = _metrics(item)
        if not rows:
            continue
        steps = [row["step"] for row in rows]
        color = f"var(--s{number % 4})"
        for key, title, smooth in (("loss", "loss", True), ("learning_rate", "learning rate", False)):
            values = [row.get(key, float("nan")) for row in rows]
            name = html.escape(_readable(item.name))
            chart = line_chart(steps, values, color=color, smooth=smooth, label=f"{name}: {title}")
            note = (
                f"last {values[-1]:.3f}"
                if key == "loss"
                else f"peak {short(max(filter(math.isfinite, values), default=math.nan))}"
            )
            cards.append(
                f'<div class="card chart"><h3>{name} <span class="soft">{title}, {note}</span></h3>{chart}</div>'
            )
    if not cards:
        return ""
    return (
        '<section id="training"><h2>Training</h2><p class="soft">Loss per supervised token and learning rate over the '
        f'steps of every stage.</p><div class="grid wide">{"".join(cards)}</div></section>'
    )


def _metrics(item: CheckpointConfig) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl; of steps that were repeated after a restart the last."""
    path = storage.path(item.workdir) / metrics.FILE
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
