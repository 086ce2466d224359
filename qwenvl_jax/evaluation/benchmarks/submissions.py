"""The files that the servers of benchmarks take: one function per server, from rows of predictions to files by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.evaluation.benchmarks.published import truth_of
from qwenvl_jax.evaluation.benchmarks.spreadsheet import xlsx
from qwenvl_jax.evaluation.metrics.multiple_choice import constrained_answers
from qwenvl_jax.runtime.errors import UserError

Rows = Sequence[Mapping[str, Any]]

_MMBENCH_LETTERS = "ABCD"


def vqav2(rows: Rows) -> dict[str, bytes]:
    """For EvalAI: `[{"question_id": 262144000, "answer": "net"}, ..]`."""
    return {"vqav2.json": _json([{"question_id": _number(row), "answer": row["prediction"]} for row in rows])}


def vizwiz(rows: Rows) -> dict[str, bytes]:
    """For EvalAI: `[{"image": "VizWiz_test_00000000.jpg", "answer": "net"}, ..]`; its id is its picture."""
    return {"vizwiz.json": _json([{"image": row["id"], "answer": row["prediction"]} for row in rows])}


def docvqa(rows: Rows) -> dict[str, bytes]:
    """For the Robust Reading Competition: `[{"questionId": 57344, "answer": "net"}, ..]`."""
    return {"docvqa.json": _json([{"questionId": _number(row), "answer": row["prediction"]} for row in rows])}


def infovqa(rows: Rows) -> dict[str, bytes]:
    """As `docvqa`."""
    return {"infographicvqa.json": docvqa(rows)["docvqa.json"]}


def grit(rows: Rows) -> dict[str, bytes]:
    """For the leaderboard of GRIT, to be put into `test.zip` as `test/refexp.json`: boxes in whole pixels.

    The benchmark wants a confidence, which the model does not state, so it is always 1. The list of boxes is empty if
    the answer has no box.
    """
    samples = []
    for row in rows:
        size = truth_of(row).size
        if size is None:
            raise UserError(f"the prediction {row['id']!r} lacks the size of its picture; use records with sizes")
        box = tags.to_pixels(tags.first_box(row["prediction"]), *size)
        boxes = [[round(value) for value in box]] if any(box) else []
        samples.append({"example_id": row["id"], "confidence": 1.0, "bboxes": boxes})
    return {"refexp.json": _json(samples)}


def mmbench(rows: Rows) -> dict[str, bytes]:
    """For the server of MMBench: spreadsheets with the columns that it reads.

    One file has the answers as they are. In the other, `constrained`, all rotations of a question choose the text that
    most of them chose (released mmbench_predict_to_submission.py).
    """
    answers = [str(row["prediction"]) for row in rows]
    truths = [truth_of(row) for row in rows]
    files = {}
    for kind, letters in (("plain", answers), ("constrained", constrained_answers(answers, truths))):
        table: list[tuple[str | int, ...]] = [("index", "question", *_MMBENCH_LETTERS, "category", "prediction")]
        for row, truth, letter in zip(rows, truths, letters, strict=True):
            options = (*truth.options, *[""] * len(_MMBENCH_LETTERS))[: len(_MMBENCH_LETTERS)]
            table.append((_number(row), str(row.get("question", "")), *options, truth.category, letter))
        files[f"mmbench_{kind}.xlsx"] = xlsx(table)
    return files


def _number(row: Mapping[str, Any]) -> int:
    """The id of a question, which this server numbers."""
    identifier = str(row["id"])
    if not identifier.isdecimal():
        raise UserError(f"the id {identifier!r} is not a number, which the server needs; use records with its ids")
    return int(identifier)


def _json(values: list[dict[str, Any]]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()
