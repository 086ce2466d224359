"""The examples of report.html: one section per task, made from its predictions and records."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import DialogueContent, Turn
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record, content_of
from qwenvl_jax.data.tasks import OcrContent
from qwenvl_jax.evaluation.config import BenchmarkConfig
from qwenvl_jax.evaluation.report.pictures import picture, predicted, true
from qwenvl_jax.evaluation.results.layout import PREDICTIONS
from qwenvl_jax.evaluation.results.progress import Unfinished
from qwenvl_jax.html.figures import corners_of_box
from qwenvl_jax.html.page import bullets, captioned, grid, section
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.retries import READ_AGAIN

TITLES = {
    "ref_grounding": "Referring expressions",
    "ocr": "Reading",
    "vqa": "Questions",
    "caption": "Captions",
    "dialogue": "Dialogue",
}
_SHOWN = {"ref_grounding": 12, "ocr": 8, "vqa": 12, "caption": 8, "dialogue": 4}
_DIALOGUES_SEARCHED = 40
# Besides the style that all reports share.
STYLE = """
.key { display: inline-flex; align-items: center; gap: .4rem; margin-right: 1rem; }
.key::before { content: ""; width: 18px; border-top: 3px solid var(--predicted); }
.key.true::before { border-top: 3px dashed var(--true); }
.card b { color: var(--ink); }
.mark { font-size: .78rem; font-weight: 600; } .mark.yes { color: var(--good); } .mark.no { color: var(--bad); }
.chat { display: flex; flex-direction: column; gap: .6rem; max-width: 640px; margin: 0 0 2.2rem; }
.bubble { border-radius: 14px; padding: .6rem .85rem; max-width: 86%; overflow-wrap: anywhere; }
.bubble.user { align-self: flex-end; background: var(--wash); }
.bubble.model { align-self: flex-start; background: var(--card); border: 1px solid var(--line); }
.bubble .pictures { display: flex; gap: .5rem; margin-bottom: .4rem; flex-wrap: wrap; }
.bubble .pictures figure { width: 150px; }
.bubble svg { border-radius: 8px; }
.bubble .one { width: 220px; max-width: 100%; margin-top: .45rem; }
@media print { .bubble { break-inside: avoid; } }
"""
LEGEND = '<p class="small"><span class="key">predicted</span><span class="key true">true</span></p>'


@dataclasses.dataclass(frozen=True)
class Shown:
    """The first records of a benchmark, the rows of their predictions by id, and its anchor and heading."""

    records: list[Record]
    rows: dict[str, dict[str, Any]]
    name: str
    title: str


def load(task: BenchmarkConfig, output: epath.Path, checkpoint: str) -> Shown:
    """Reads the predictions of one checkpoint and the records that they answer.

    Raises:
      UserError: if the predictions are missing.
    """
    path = output / PREDICTIONS / checkpoint / f"{task.label}.jsonl"
    if not storage.exists(path):
        raise UserError(f"{path} does not exist; run the evaluation again")
    rows = _rows(path)
    reader = RecordReader(task.records, task.split)
    count = _DIALOGUES_SEARCHED if task.name == "dialogue" else _SHOWN[task.name]
    limit = min(task.limit or len(reader), len(reader), count)
    records = [record for index in range(limit) if (record := _record(reader, index)) is not None]
    answered = [record for record in records if _is_answered(record, rows)]
    return Shown(answered, rows, *name_and_title(task))


def name_and_title(task: BenchmarkConfig) -> tuple[str, str]:
    """The anchor and the heading of a benchmark's section; the heading is that of its task, or its own label."""
    title = TITLES[task.name] if task.label == task.name else task.label.replace("_", " ").capitalize()
    return task.label, title


def _rows(path: epath.Path) -> dict[str, dict[str, Any]]:
    """Rows of predictions by id. Only a line feed ends a row, because answers may contain other line separators."""
    try:
        rows = [json.loads(line) for line in storage.read_bytes(path).decode().split("\n") if line]
        return {row["id"]: row for row in rows}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is not what an evaluation writes; remove it and run the evaluation again") from None


def _record(reader: RecordReader, index: int) -> Record | None:
    """A record; None if it cannot be read, which the scores report."""
    try:
        return reader[index]
    except READ_AGAIN:
        raise
    except Exception:  # damaged bytes make libraries raise anything
        return None


def _is_answered(record: Record, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether the predictions answer all questions of a record; they may be older than the records."""
    if record.task != "dialogue":
        return record.id in rows
    turns = enumerate(_turns(record))
    return all(f"{record.id}#{number}" in rows for number, turn in turns if turn["role"] == "assistant")


def unfinished_section(unfinished: Sequence[Unfinished]) -> str:
    """The benchmarks that have no result yet; empty if all have one."""
    if not unfinished:
        return ""
    intro = "The evaluation has not ended. The command that began it continues it; these benchmarks have no result yet."
    return section("unfinished", "Not finished", intro, bullets(html.escape(str(each)) for each in unfinished))


def _section(shown: Shown, intro: str, content: str) -> str:
    return section(shown.name, shown.title, intro, content)


def _verdict(right: bool, yes: str, no: str) -> str:
    return f'<span class="mark {"yes" if right else "no"}">{yes if right else no}</span>'


def _strong(text: str) -> str:
    return f"<b>{html.escape(text) or '&nbsp;'}</b>"


def _ref_grounding(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        regions = [true(corners_of_box(row["box"])), predicted(corners_of_box(row["predicted_box"]))]
        svg = picture(record.images[0], regions, alt=row["phrase"])
        overlap = f"IoU {row['iou']:.2f}"
        cards.append(captioned(svg, [_strong(row["phrase"]), _verdict(row["iou"] >= 0.5, overlap, overlap)]))
    return _section(shown, "A phrase goes in, a box comes out as text.", LEGEND + grid(cards))


def _ocr(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        x_scale = row["width"] / 1000
        y_scale = row["height"] / 1000
        regions = [true(line["quad"]) for line in content_of(record, OcrContent)["lines"]]
        for _, quads in tags.parse_quads(row["text"]):
            regions += [predicted([(x * x_scale, y * y_scale) for x, y in quad]) for quad in quads]
        text = " / ".join(row["prediction"])
        truth = " / ".join(row["lines"])
        right = row["edits"] == 0
        cards.append(
            captioned(
                picture(record.images[0], regions, alt=truth),
                [
                    _strong(text),
                    "" if right else f"true: {html.escape(truth)}",
                    _verdict(right, "every character right", f"{row['edits']} of {row['characters']} wrong"),
                ],
            )
        )
    return _section(shown, "Text and its quadrilaterals, in reading order.", LEGEND + grid(cards))


def _vqa(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        right = row["exact"] == 1
        lines = [
            html.escape(row["question"]),
            _strong(row["prediction"]),
            "" if right else f"true: {html.escape(row['answers'][0])}",
            _verdict(right, "right", "wrong"),
        ]
        cards.append(captioned(picture(record.images[0], alt=row["question"]), lines))
    return _section(shown, "Short answers, compared letter for letter.", grid(cards))


def _caption(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        truth = row["references"][0]
        lines = [_strong(row["prediction"]), f"true: {html.escape(truth)}"]
        cards.append(captioned(picture(record.images[0], alt=truth), lines))
    return _section(shown, "One sentence about the picture.", grid(cards))


_TAG = re.compile(r"<(ref|box|quad)>(.*?)</\1>", re.DOTALL)


def _answer_html(text: str) -> str:
    """An answer as HTML: references in bold, coordinates as code, other tags dropped."""
    parts = []
    end = 0
    for match in _TAG.finditer(text):
        parts.append(html.escape(text[end : match.start()]))
        inner = html.escape(match.group(2))
        parts.append(f"<b>{inner}</b> " if match.group(1) == "ref" else f"<code>{inner}</code>")
        end = match.end()
    return "".join([*parts, html.escape(text[end:])])


def _turns(record: Record) -> Sequence[Turn]:
    return content_of(record, DialogueContent)["turns"]


def _dialogue(shown: Shown) -> str:
    long = [record for record in shown.records if len(record.images) > 1 and len(_turns(record)) > 2]
    chats = [_chat(record, shown.rows) for record in (long or shown.records)[: _SHOWN["dialogue"]]]
    intro = "Several turns about several pictures, in ChatML; every answer follows the true turns before it."
    return _section(shown, intro, LEGEND + "".join(chats))


def _chat(record: Record, rows: dict[str, dict[str, Any]]) -> str:
    bubbles = []
    for number, turn in enumerate(_turns(record)):
        if turn["role"] == "assistant":
            bubbles.append(_answer_bubble(record, turn, rows[f"{record.id}#{number}"]))
        else:
            bubbles.append(_question_bubble(record, turn))
    return f'<div class="chat">{"".join(bubbles)}</div>'


def _question_bubble(record: Record, turn: Turn) -> str:
    images = [record.images[part["image"]] for part in turn["parts"] if "image" in part and "ref" not in part]
    figures = "".join(f"<figure>{picture(image, alt='picture')}</figure>" for image in images)
    text = " ".join(part["text"] for part in turn["parts"] if "text" in part).strip()
    row = f'<div class="pictures">{figures}</div>' if figures else ""
    return f'<div class="bubble user">{row}{html.escape(text)}</div>'


def _answer_bubble(record: Record, turn: Turn, row: dict[str, Any]) -> str:
    right = row["right"] == 1
    truth = "" if right else f'<div class="small soft">true: {_answer_html(row["truth"])}</div>'
    answer = _answer_html(row["prediction"]) or "&nbsp;"
    figure = _answer_figure(record, turn, row["prediction"])
    verdict = _verdict(right, "right", "wrong")
    return f'<div class="bubble model">{answer}{figure}{truth}<div>{verdict}</div></div>'


def _answer_figure(record: Record, turn: Turn, prediction: str) -> str:
    """The picture that the true boxes of a turn are about; empty if the turn has no boxes."""
    grounded = [part for part in turn["parts"] if "boxes" in part]
    if not grounded:
        return ""
    index = grounded[0].get("image", 0)
    width, height = content_of(record, DialogueContent)["sizes"][index]
    regions = [true(corners_of_box(box)) for part in grounded for box in part["boxes"]]
    for _, boxes in tags.parse_boxes(prediction):
        regions += [predicted(corners_of_box(tags.to_pixels(box, width, height))) for box in boxes]
    svg = picture(record.images[index], regions, alt="boxes", size=(width, height))
    return f'<figure class="one">{svg}</figure>'


SECTIONS: dict[str, Callable[[Shown], str]] = {
    "ref_grounding": _ref_grounding,
    "ocr": _ocr,
    "vqa": _vqa,
    "caption": _caption,
    "dialogue": _dialogue,
}
