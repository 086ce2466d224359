"""SynthDoG, dialogues and plain text: their rows, and what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipelines.corpora.synthdog import QUESTIONS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import Answer, FailedRow, Picture, Question, RawPair, Row
from qwenvl_jax.data.dialogues import check_dialogue
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora import texts
from tests.support.corpora.pictures import picture
from tests.support.corpora.tables import write_json, write_jsonl, write_parquet


def read(name: str, folder: Path, split: str = "train") -> list[Row]:
    return list(CORPORA[name].read(folder, split))


def reasons(rows: list[Row]) -> list[str]:
    return [row.reason for row in rows if isinstance(row, FailedRow)]


def pairs(rows: list[Row]) -> list[RawPair]:
    return [row for row in rows if isinstance(row, RawPair)]


@pytest.mark.parametrize(
    ("language", "written"),
    [("en", ("The history of the town", 'He said "no" \\ and left')), ("zh", ("小镇的历史", "春天 的 花"))],
)
def test_synthdog(language: str, written: tuple[str, ...], tmp_path: Path) -> None:
    name = f"synthdog_{language}"
    texts.write_synthdog_en(tmp_path) if language == "en" else texts.write_synthdog_zh(tmp_path)
    assert read(name, tmp_path, "val") == [
        RawPair(
            id=f"validation/{line}",
            source=name,
            license=CORPORA[name].license,
            language=language,
            pictures=(Picture(path=str(tmp_path / "validation" / f"image_{9 + line}.jpg")),),
            questions=(Question(QUESTIONS[language], (Answer(text),)),),
        )
        for line, text in enumerate(written, start=1)
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"file_name": "a.jpg"}, "missing value"),
        ({"file_name": "a.jpg", "ground_truth": {"gt_parse": {"text_sequence": "a"}}}, "wrong type"),
        ({"file_name": "a.jpg", "ground_truth": "{"}, "not JSON"),
        ({"file_name": "a.jpg", "ground_truth": '{"gt_parse": []}'}, "wrong form"),
        ({"file_name": "a.jpg", "ground_truth": '{"gt_parse": {"text_sequence": null}}'}, "missing value"),
        ({"file_name": "/a.jpg", "ground_truth": '{"gt_parse": {"text_sequence": "a"}}'}, "refused name"),
        (7, "wrong form"),
    ],
)
def test_a_bad_line_of_synthdog_costs_only_itself(row: Any, reason: str, tmp_path: Path) -> None:
    texts.write_synthdog_en(tmp_path)
    expected = read("synthdog_en", tmp_path)
    path = tmp_path / "train" / "metadata.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    rows = read("synthdog_en", tmp_path)
    assert rows[:-1] == expected and reasons(rows) == [reason]


def said(pair: RawPair) -> list[tuple[str, list[Any]]]:
    return [(turn["role"], list(turn["parts"])) for turn in pair.turns]


def test_llava(tmp_path: Path) -> None:
    texts.write_llava(tmp_path)
    rows = read("llava", tmp_path)
    first, second, third = pairs(rows)
    assert [pair.id for pair in pairs(rows)] == [f"llava_instruct_150k/{n}" for n in range(3)]
    assert said(first) == [
        ("user", [{"image": 0}, {"text": "What colour is the bus?"}]),
        ("assistant", [{"text": "White and red."}]),
        ("user", [{"text": "Where is it?"}]),
        ("assistant", [{"text": "In a street."}]),
    ]
    assert said(second)[0] == ("user", [{"image": 0}, {"text": "Describe the picture."}])
    assert said(third) == [
        ("user", [{"text": "What does <image> mean in HTML?"}]),
        ("assistant", [{"text": "Nothing: <img> shows a picture."}]),
    ]
    assert [picture_.read() for pair in (first, second) for picture_ in pair.pictures] == [picture(1)] * 2
    assert third.pictures == () and not first.in_thousandths
    assert reasons(rows) == ["malformed dialogue"]
    for pair in pairs(rows):
        check_dialogue({"turns": list(pair.turns)})


def test_a_picture_that_no_turn_of_llava_shows_comes_first(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [texts.llava_dialogue("a.jpg", "What is it?", "A bus.")])
    [pair] = pairs(read("llava", tmp_path))
    assert said(pair)[0] == ("user", [{"image": 0}, {"text": "What is it?"}])


def test_several_pictures_of_llava_stay_where_they_are(tmp_path: Path) -> None:
    row = {**texts.llava_dialogue(None, "<image>\nand\n<image>\nCompare.", "Equal."), "images": ["a.jpg", "b/c.jpg"]}
    write_jsonl(tmp_path / "a.jsonl", [row])
    [pair] = pairs(read("llava", tmp_path))
    assert said(pair)[0] == ("user", [{"image": 0}, {"text": "and\n"}, {"image": 1}, {"text": "Compare."}])
    assert [shown.path for shown in pair.pictures] == [str(tmp_path / "train2017/a.jpg"), str(tmp_path / "b/c.jpg")]


def test_dialogues_of_the_released_fine_tuning(tmp_path: Path) -> None:
    texts.write_qwen_vl_dialogues(tmp_path)
    rows = read("qwen_vl_dialogues", tmp_path)
    first, second, third = pairs(rows)
    parts = [{"text": "A "}, {"ref": "dog", "boxes": []}, {"boxes": [[10, 20, 300, 400]]}, {"text": "."}]
    assert said(first)[1] == ("assistant", parts)
    assert first.in_thousandths
    assert [shown.read() for shown in second.pictures] == [picture(1), picture(2, "PNG")]
    assert third.pictures == ()
    assert reasons(rows) == ["malformed dialogue"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("no object", "wrong form"),
        ({"id": "a"}, "malformed dialogue"),
        ({"conversations": []}, "malformed dialogue"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "malformed dialogue"),
        ({"conversations": [{"from": "user", "value": "<img>/etc/passwd</img>"}]}, "refused name"),
        ({"conversations": [{"from": "user", "value": "<img>../x.jpg</img>"}]}, "refused name"),
        ({"conversations": [{"from": "user", "value": "<img>https://a/x.jpg</img>"}]}, "refused name"),
    ],
)
def test_a_bad_dialogue_costs_only_itself(row: Any, reason: str, tmp_path: Path) -> None:
    texts.write_qwen_vl_dialogues(tmp_path)
    path = tmp_path / "dialogues.json"
    good = json.loads(path.read_text())[:3]
    path.write_text(json.dumps([row, *good]))
    rows = read("qwen_vl_dialogues", tmp_path)
    assert reasons(rows) == [reason] and len(pairs(rows)) == 3


def test_a_picture_below_the_folder_may_have_its_whole_path(tmp_path: Path) -> None:
    turns = [{"from": "user", "value": f"<img>{tmp_path}/a/1.jpg</img>"}, {"from": "assistant", "value": "a"}]
    write_jsonl(tmp_path / "a.jsonl", [{"conversations": turns}])
    [pair] = pairs(read("qwen_vl_dialogues", tmp_path))
    assert pair.pictures[0].path == f"{tmp_path}/a/1.jpg"


def test_text(tmp_path: Path) -> None:
    texts.write_text(tmp_path)
    license_ = CORPORA["text"].license
    rows = read("text", tmp_path)
    assert rows == [
        RawPair("part-00000.jsonl/a", "text", "CC-BY-SA-4.0", "en", texts=("The first text.",)),
        RawPair("part-00000.jsonl:2", "text", license_, "zh", texts=("第二篇文章。",)),
        RawPair("part-00000.jsonl/7", "text", license_, "", texts=("A third text\nof two lines.",)),
        FailedRow("missing value", "text"),
        *(
            RawPair(f"part-00001.parquet/{n}", "text", "CC0-1.0", "", texts=(f"Text {n} of a table.",))
            for n in range(5)
        ),
    ]


def test_text_in_the_folder_of_its_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train" / "a.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "other.jsonl", [{"text": "b"}])
    assert [pair.id for pair in pairs(read("text", tmp_path))] == ["train/a.jsonl:1"]


def test_bytes_of_a_text_column_that_are_not_utf8_cost_only_their_row(tmp_path: Path) -> None:
    column = pa.array([b"text 0", b"text \xff", b"text 2"], pa.binary()).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    rows = read("text", tmp_path)
    assert [pair.texts[0] for pair in pairs(rows)] == ["text 0", "text 2"]
    assert rows[1] == FailedRow("not UTF-8", "text")


def test_a_table_without_text_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"content": "a", "id": 1}])
    with pytest.raises(UserError, match=r"no column text; its columns are content \(string\), id \(int64\)"):
        read("text", tmp_path)


def test_the_system_of_a_dialogue_is_kept_apart(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "gpt", "value": "dropped, as the released fine-tuning does"},
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi"},
    ]
    write_jsonl(tmp_path / "a.jsonl", [{"conversations": turns}, {"conversations": [*turns, turns[0]]}])
    for name in ("llava", "qwen_vl_dialogues"):
        rows = read(name, tmp_path)
        [pair] = pairs(rows)
        assert pair.system == "Be brief."
        assert said(pair) == [("user", [{"text": "Hello"}]), ("assistant", [{"text": "Hi"}])]
        assert reasons(rows) == ["malformed dialogue"]


def test_a_list_of_dialogues_that_is_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    texts.write_llava(tmp_path)
    whole = read("llava", tmp_path)
    path = tmp_path / "llava_instruct_150k.json"
    path.write_bytes(path.read_bytes()[:-30])
    rows = read("llava", tmp_path)
    assert rows[:3] == whole[:3]
    assert reasons(rows) == ["rest of the file unreadable"]
    path.write_text('{"id": {}, "other": {}}')
    with pytest.raises(UserError, match="is one object, not a list of dialogues"):
        read("llava", tmp_path)
