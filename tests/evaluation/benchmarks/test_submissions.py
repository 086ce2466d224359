"""The files for servers, read back as the servers read them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.benchmarks.spreadsheet import xlsx
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.benchmarks.published_records import ask, row_of


def rows(name: str, answers: dict[str, str], **changes: Any) -> list[dict[str, Any]]:
    benchmark = BENCHMARKS[name]
    return [row_of(benchmark, ask(benchmark, id=key, **changes), answer) for key, answer in answers.items()]


def files(name: str, predictions: list[dict[str, Any]]) -> dict[str, bytes]:
    submission = BENCHMARKS[name].submission
    assert submission is not None
    return submission(predictions)


@pytest.mark.parametrize(
    ("name", "file", "key", "identifier", "value"),
    [
        ("vqav2_testdev", "vqav2.json", "question_id", "262144000", 262144000),
        ("vizwiz_test", "vizwiz.json", "image", "VizWiz_test_00000000.jpg", "VizWiz_test_00000000.jpg"),
        ("docvqa_test", "docvqa.json", "questionId", "57344", 57344),
        ("infovqa_test", "infographicvqa.json", "questionId", "98301", 98301),
    ],
)
def test_answers(name: str, file: str, key: str, identifier: str, value: object) -> None:
    [(written, content)] = files(name, rows(name, {identifier: ' a "网" net<|endoftext|>'})).items()
    assert written == file
    assert json.loads(content) == [{key: value, "answer": 'a "网" net'}]


def test_questions_without_an_answer_are_in_the_file() -> None:
    """A server refuses a file that lacks a question."""
    benchmark = BENCHMARKS["vqav2_testdev"]
    missing = {"id": "7", **benchmark.unanswered(ask(benchmark, id="7").about)}
    content = files("vqav2_testdev", [*rows("vqav2_testdev", {"5": " net"}), missing])["vqav2.json"]
    assert json.loads(content) == [{"question_id": 5, "answer": "net"}, {"question_id": 7, "answer": ""}]


def test_an_id_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="is not a number"):
        files("docvqa_test", rows("docvqa_test", {"a1": " net"}))


def test_grit_has_boxes_in_pixels() -> None:
    predictions = rows("grit_refexp", {"a": "(100,100),(500,500)</box>", "b": "no box"})
    assert json.loads(files("grit_refexp", predictions)["refexp.json"]) == [
        {"example_id": "a", "confidence": 1.0, "bboxes": [[64, 48, 320, 240]]},
        {"example_id": "b", "confidence": 1.0, "bboxes": []},
    ]


_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def table(content: bytes) -> list[dict[str, str]]:
    """The rows of a spreadsheet by the names in its first row; empty cells are left out."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    rows = []
    for row in sheet.iter(f"{_MAIN}row"):
        cells = {}
        for cell in row:
            text = "".join(node.text or "" for node in cell.iter() if node.tag in (f"{_MAIN}t", f"{_MAIN}v"))
            text = re.sub("_x([0-9A-F]{4})_", lambda match: chr(int(match.group(1), 16)), text)
            cells[str(cell.get("r")).rstrip("0123456789")] = text
        rows.append(cells)
    return [{rows[0][column]: text for column, text in row.items()} for row in rows[1:]]


def test_mmbench_plain_and_constrained() -> None:
    """Three of four rotations choose the cat; the constrained file makes the fourth choose it, too."""
    options = ["a cat", "a dog", "a cow", "a hen"]
    predictions = []
    for shift, answer in enumerate([" A", " D", " C", " A"]):
        rotated = options[shift:] + options[:shift]
        predictions += rows("mmbench_test", {str(17 + shift * 10**6): answer}, options=rotated, category="animals")
    written = files("mmbench_test", predictions)
    plain = table(written["mmbench_plain.xlsx"])
    constrained = table(written["mmbench_constrained.xlsx"])
    assert [row["index"] for row in plain] == ["17", "1000017", "2000017", "3000017"]
    assert [row["prediction"] for row in plain] == ["A", "D", "C", "A"]
    assert [row["prediction"] for row in constrained] == ["A", "D", "C", "B"]
    assert plain[1] == {
        "index": "1000017", "question": "What is in the picture?", "A": "a dog", "B": "a cow", "C": "a hen",
        "D": "a cat", "category": "animals", "prediction": "D",
    }  # fmt: skip
    assert written == files("mmbench_test", predictions)


def test_a_cell_holds_so_much_and_columns_have_letters() -> None:
    [row] = table(xlsx([[str(number) for number in range(60)], ["x" * 40_000, *[7] * 59]]))
    assert row["0"] == "x" * 32_767
    assert row["59"] == "7"


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.text(min_size=1, max_size=30))
@example(["_x000D_", "a\rb"], "<&>\n\t_x0041_ ]]>")
def test_tables_hold_any_text(options: list[str], question: str) -> None:
    [row] = rows("mmbench_test", {"1": " A"}, options=options, text=question)
    [cells] = table(files("mmbench_test", [row])["mmbench_plain.xlsx"])
    assert cells["question"] == readable(row["question"])
    assert [cells[letter] for letter in "ABCD"[: len(options)]] == list(map(readable, row["truth"]["options"]))


def readable(text: str) -> str:
    """The text without the characters that XML cannot hold."""
    return re.sub("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]", "\ufffd", text)
