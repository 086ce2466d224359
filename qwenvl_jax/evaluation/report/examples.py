"""Examples of a published benchmark: pictures with questions, answers and boxes, some right and some wrong ones."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.prompts import LETTERS
from qwenvl_jax.evaluation.report.pictures import picture, predicted, true
from qwenvl_jax.html.figures import Region, corners_of_box
from qwenvl_jax.html.page import captioned, grid
from qwenvl_jax.runtime.retries import READ_AGAIN

SHOWN = 3  # right answers of a benchmark, and as many wrong ones
SEARCHED = 60  # records, spread evenly over the benchmark
SIDE_PX = 320  # the longer side of a picture is scaled down to this
PICTURES = 4  # of one question, such as the frames of a video
LONGEST = 300  # characters of a text that are shown
OPTIONS = 8
_RIGHT = 0.5  # an answer with at least this value is shown among the right ones


def examples(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], reader: RecordReader, limit: int = 0) -> str:
    """Cards with examples: first right answers, then wrong ones.

    The choice depends on the position of the records alone, so it is the same for all checkpoints that answer alike.

    Args:
      benchmark: how answers are scored.
      rows: of predictions of one checkpoint.
      reader: the records that were asked about.
      limit: only the first records, this many, were asked about; 0 for all.

    Returns:
      HTML; empty if no record can be shown.
    """
    by_id = {row["id"]: row for row in rows}
    asked: list[tuple[Record, Mapping[str, Any]]] = []
    for record in _some_records(reader, limit):
        ids = [question["id"] for question in _questions(record)]
        asked += [(record, by_id[each]) for each in ids[:1] if each in by_id]
    values = _values(benchmark, [row for _, row in asked])
    chosen: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for (record, row), value in zip(asked, values, strict=True):
        kind = None if value is None else value >= _RIGHT
        if len(chosen[kind]) < (2 * SHOWN if kind is None else SHOWN):
            chosen[kind].append(_card(record, row, value))
    cards = [*chosen[True], *chosen[False], *chosen[None]]
    return grid(cards) if cards else ""


def short(text: str) -> str:
    """A text as HTML, cut to `LONGEST` characters."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return html.escape(cut)


def _some_records(reader: RecordReader, limit: int) -> list[Record]:
    """Up to `SEARCHED` records; those that cannot be read are left out."""
    count = min(limit or len(reader), len(reader))
    records = []
    for index in range(0, count, max(1, count // SEARCHED))[:SEARCHED]:
        try:
            records.append(reader[index])
        except READ_AGAIN:
            raise
        except Exception:  # damaged bytes make libraries raise anything
            continue
    return records


def _questions(record: Record) -> Sequence[Mapping[str, Any]]:
    content: Mapping[str, Any] = record.content
    return content.get("questions", ())


def _values(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """How right each answer is, from 0 to 1; None if the benchmark has no such values."""
    scores = benchmark.score([dict(row) for row in rows]) if rows and not benchmark.hidden else {}
    main = next(iter(scores.values()), None)
    if main is None or not main.bounded or len(main.per_question) != len(rows):
        return [None] * len(rows)
    return list(main.per_question)


def _card(record: Record, row: Mapping[str, Any], value: float | None) -> str:
    truth: Mapping[str, Any] = row.get("truth") or {}
    lines = [
        short(str(row.get("question", ""))),
        *_options(truth),
        f"<b>{short(str(row.get('prediction', ''))) or '&nbsp;'}</b>",
        _truth_line(truth),
        _verdict(row, value),
    ]
    return captioned(_pictures(record, row, truth), [line for line in lines if line])


def _pictures(record: Record, row: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    """The pictures of a question; boxes are drawn if it has one picture."""
    alt = str(row.get("question", ""))[:LONGEST]
    if len(record.images) != 1:
        frames = "".join(picture(image, alt=alt, side=SIDE_PX) for image in record.images[:PICTURES])
        return f'<div class="frames">{frames}</div>' if frames else ""
    size = truth.get("size")
    regions = _regions(str(row.get("prediction", "")), truth, size) if size and "box" in truth else []
    return picture(record.images[0], regions, alt=alt, size=size, side=SIDE_PX)


def _regions(prediction: str, truth: Mapping[str, Any], size: Sequence[float]) -> list[Region]:
    """The true box and, within the picture, the first box of the answer."""
    width, height = size
    regions = [true(corners_of_box(truth["box"]))]
    x1, y1, x2, y2 = tags.to_pixels(tags.first_box(prediction), width, height)
    if x1 < x2 and y1 < y2:
        box = (max(0.0, x1), max(0.0, y1), min(width, x2), min(height, y2))
        regions.append(predicted(corners_of_box(box)))
    return regions


def _options(truth: Mapping[str, Any]) -> list[str]:
    options = truth.get("options", ())
    lines = [f"{letter}. {short(str(text))}" for letter, text in zip(LETTERS, options, strict=False)]
    return [*lines[:OPTIONS], "…"] if len(lines) > OPTIONS else lines


def _truth_line(truth: Mapping[str, Any]) -> str:
    answers = list(dict.fromkeys(map(str, truth.get("answers", ()))))
    if not answers:
        return ""
    more = f" and {len(answers) - 3} more" if len(answers) > 3 else ""
    return f"true: {' / '.join(map(short, answers[:3]))}{more}"


def _verdict(row: Mapping[str, Any], value: float | None) -> str:
    if row.get("unanswered"):
        return f'<span class="mark no">not asked: {short(str(row["unanswered"]))}</span>'
    if value is None:
        return ""
    word = "right" if value == 1 else "wrong" if value == 0 else f"{value:.2f} right"
    return f'<span class="mark {"yes" if value >= _RIGHT else "no"}">{word}</span>'
