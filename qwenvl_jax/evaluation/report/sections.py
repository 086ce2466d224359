"""The examples of report.html: one section per task, made from its predictions and records."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from typing import Any

from etils import epath

from qwenvl_jax.data import tags
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.config import TaskConfig
from qwenvl_jax.evaluation.questions import READ_AGAIN
from qwenvl_jax.evaluation.report.pictures import PREDICTED, TRUE, corners_of_box, figure
from qwenvl_jax.evaluation.sweep import PREDICTIONS
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

TITLES = {
    "ref_grounding": "Referring expressions",
    "ocr": "Reading",
    "vqa": "Questions",
    "caption": "Captions",
    "dialogue": "Dialogue",
}
_SHOWN = {"ref_grounding": 12, "ocr": 8, "vqa": 12, "caption": 8, "dialogue": 4}
_DIALOGUES_SEARCHED = 40
_LEGEND = '<p class="small"><span class="key">predicted</span><span class="key t">true</span></p>'


@dataclasses.dataclass(frozen=True)
class Shown:
    """The first records of a task with the rows of their predictions by id."""

    records: list[Record]
    rows: dict[str, dict[str, Any]]


def load(task: TaskConfig, output: epath.Path, checkpoint: str) -> Shown:
    """Reads the predictions of one checkpoint and the records they answer.

    Raises:
      UserError: if the predictions are missing.
    """
    path = output / PREDICTIONS / checkpoint / f"{task.name}.jsonl"
    if not storage.exists(path):
        raise UserError(f"{path} does not exist; run the evaluation again")
    rows = _rows(path)
    reader = RecordReader(task.records, task.split)
    count = _DIALOGUES_SEARCHED if task.name == "dialogue" else _SHOWN[task.name]
    limit = min(task.limit or len(reader), len(reader), count)
    records = [record for index in range(limit) if (record := _record(reader, index)) is not None]
    return Shown([record for record in records if _is_answered(record, rows)], rows)


def _rows(path: epath.Path) -> dict[str, dict[str, Any]]:
    """Rows of predictions by id. Only the line feed ends one; answers may hold other characters that end a line."""
    try:
        rows = [json.loads(line) for line in storage.read_bytes(path).decode().split("\n") if line]
        return {row["id"]: row for row in rows}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is not what an evaluation writes; remove it and run the evaluation again") from None


def _record(reader: RecordReader, index: int) -> Record | None:
    """A record; None if it cannot be read, as the scores say by name."""
    try:
        return reader[index]
    except READ_AGAIN:
        raise
    except Exception:  # whatever damaged bytes make a library raise
        return None


def _is_answered(record: Record, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether the predictions have all that is shown of a record; they may be older than the records."""
    if record.task != "dialogue":
        return record.id in rows
    turns = enumerate(record.content["turns"])
    return all(f"{record.id}#{number}" in rows for number, turn in turns if turn["role"] == "assistant")


def _section(name: str, intro: str, content: str) -> str:
    return f'<section id="{name}"><h2>{TITLES[name]}</h2><p class="soft">{intro}</p>{content}</section>'


def _card(picture: str, *lines: str) -> str:
    body = "".join(f"<p>{line}</p>" for line in lines if line)
    return f'<figure class="card">{picture}<figcaption class="body">{body}</figcaption></figure>'


def _verdict(right: bool, yes: str, no: str) -> str:
    return f'<span class="mark {"yes" if right else "no"}">{yes if right else no}</span>'


def _strong(text: str) -> str:
    return f'<b style="color:var(--ink)">{html.escape(text) or "&nbsp;"}</b>'


def _grid(cards: list[str], wide: bool = False) -> str:
    return f'<div class="grid{" wide" if wide else ""}">{"".join(cards)}</div>'


def _ref_grounding(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        shapes = [(TRUE, corners_of_box(row["box"])), (PREDICTED, corners_of_box(row["predicted_box"]))]
        picture = figure(record.images[0], shapes, html.escape(row["phrase"]))
        verdict = _verdict(row["iou"] >= 0.5, f"IoU {row['iou']:.2f}", f"IoU {row['iou']:.2f}")
        cards.append(_card(picture, _strong(row["phrase"]), verdict))
    return _section("ref_grounding", "A phrase goes in, a box comes out as text.", _LEGEND + _grid(cards))


def _ocr(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        width, height = row["width"], row["height"]
        shapes = [(TRUE, line["quad"]) for line in record.content["lines"]]
        for _, quads in tags.parse_quads(row["text"]):
            shapes += [(PREDICTED, [(x * width / 1000, y * height / 1000) for x, y in quad]) for quad in quads]
        read, true = " / ".join(row["prediction"]), " / ".join(row["lines"])
        verdict = _verdict(row["edits"] == 0, "every character right", f"{row['edits']} of {row['characters']} wrong")
        wrong = "" if row["edits"] == 0 else f"true: {html.escape(true)}"
        cards.append(_card(figure(record.images[0], shapes, html.escape(true)), _strong(read), wrong, verdict))
    return _section("ocr", "Text and its quadrilaterals, in reading order.", _LEGEND + _grid(cards))


def _vqa(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        right = row["exact"] == 1
        truth = "" if right else f"true: {html.escape(row['answers'][0])}"
        question = html.escape(row["question"])
        picture = figure(record.images[0], alt=question)
        cards.append(_card(picture, question, _strong(row["prediction"]), truth, _verdict(right, "right", "wrong")))
    return _section("vqa", "Short answers, compared letter for letter.", _grid(cards))


def _caption(shown: Shown) -> str:
    cards = []
    for record in shown.records:
        row = shown.rows[record.id]
        truth = f"true: {html.escape(row['references'][0])}"
        picture = figure(record.images[0], alt=html.escape(row["references"][0]))
        cards.append(_card(picture, _strong(row["prediction"]), truth))
    return _section("caption", "One sentence about the picture.", _grid(cards))


_TAG = re.compile(r"<(ref|box|quad)>(.*?)</\1>", re.DOTALL)


def _said(text: str) -> str:
    """An answer for people: references in bold, coordinates as code, other tags dropped."""
    parts, at = [], 0
    for match in _TAG.finditer(text):
        parts.append(html.escape(text[at : match.start()]))
        inner = html.escape(match.group(2))
        parts.append(f"<b>{inner}</b> " if match.group(1) == "ref" else f"<code>{inner}</code>")
        at = match.end()
    return "".join([*parts, html.escape(text[at:])])


def _dialogue(shown: Shown) -> str:
    several = [r for r in shown.records if len(r.images) > 1 and len(r.content["turns"]) > 2]
    chats = "".join(_chat(record, shown.rows) for record in (several or shown.records)[: _SHOWN["dialogue"]])
    intro = "Several turns about several pictures, in ChatML; every answer follows the true turns before it."
    return _section("dialogue", intro, _LEGEND + chats)


def _chat(record: Record, rows: dict[str, dict[str, Any]]) -> str:
    bubbles = []
    for number, turn in enumerate(record.content["turns"]):
        if turn["role"] == "assistant":
            bubbles.append(_answer_bubble(record, turn, rows[f"{record.id}#{number}"]))
            continue
        pictures = "".join(
            f"<figure>{figure(record.images[part['image']], alt='picture')}</figure>"
            for part in turn["parts"]
            if "image" in part and "ref" not in part
        )
        text = html.escape(" ".join(part["text"] for part in turn["parts"] if "text" in part).strip())
        row = f'<div class="pictures">{pictures}</div>' if pictures else ""
        bubbles.append(f'<div class="bubble user">{row}{text}</div>')
    return f'<div class="chat">{"".join(bubbles)}</div>'


def _answer_bubble(record: Record, turn: dict[str, Any], row: dict[str, Any]) -> str:
    right = row["right"] == 1
    truth = "" if right else f'<div class="small soft">true: {_said(row["truth"])}</div>'
    picture = ""
    places = [part for part in turn["parts"] if "boxes" in part]
    if places:
        index = places[0].get("image", 0)
        width, height = record.content["sizes"][index]
        shapes = [(TRUE, corners_of_box(box)) for part in places for box in part["boxes"]]
        for _, boxes in tags.parse_boxes(row["prediction"]):
            shapes += [(PREDICTED, corners_of_box(tags.to_pixels(box, width, height))) for box in boxes]
        picture = f'<div class="one">{figure(record.images[index], shapes, "boxes", (width, height))}</div>'
    verdict = _verdict(right, "right", "wrong")
    return f'<div class="bubble model">{_said(row["prediction"]) or "&nbsp;"}{picture}{truth}<div>{verdict}</div></div>'


SECTIONS: dict[str, Callable[[Shown], str]] = {
    "ref_grounding": _ref_grounding,
    "ocr": _ocr,
    "vqa": _vqa,
    "caption": _caption,
    "dialogue": _dialogue,
}
