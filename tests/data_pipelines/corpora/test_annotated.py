"""The rows of the corpora of questions and regions on their fixtures, exactly, and on damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import Answer, FailedRow, Picture, Question, RawPair, Region, Row
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora import annotated
from tests.support.corpora.annotated import gqa
from tests.support.corpora.pictures import HEIGHT, WIDTH
from tests.support.corpora.table import FIXTURES
from tests.support.corpora.tables import write_json

Facts = list[tuple[str, str, list[Question]]]


def rows(name: str, folder: Path, split: str = "train") -> list[Row]:
    FIXTURES[name](folder)
    return list(CORPORA[name].read(folder, split))


def pairs_and_failures(read_rows: list[Row]) -> tuple[list[RawPair], list[FailedRow]]:
    pairs = [row for row in read_rows if isinstance(row, RawPair)]
    return pairs, [row for row in read_rows if isinstance(row, FailedRow)]


def questions(read_rows: list[Row], folder: Path) -> Facts:
    """The id, the path of the picture and the questions of every pair."""
    pairs, _ = pairs_and_failures(read_rows)
    facts = []
    for pair in pairs:
        (picture,) = pair.pictures
        facts.append((pair.id, str(Path(picture.path).relative_to(folder)), list(pair.questions)))
    return facts


def asked(text: str, *answers: str) -> Question:
    return Question(text, tuple(map(Answer, answers)))


def test_visual_genome_regions(tmp_path: Path) -> None:
    read_rows = rows("visual_genome", tmp_path)

    def pair(number: int, part: str, *regions: Region) -> RawPair:
        picture = Picture(path=f"{tmp_path}/{part}/{number}.jpg", width=WIDTH, height=HEIGHT)
        return RawPair(str(number), "visual_genome", "CC-BY-4.0", "en", (picture,), regions=regions)

    assert read_rows == [
        pair(
            1,
            "VG_100K_2",
            Region("the clock is green", ((2.0, 3.0, 12.0, 11.0),)),
            Region("shade from tree", ((0.0, 0.0, 26.0, 16.0),)),
        ),
        FailedRow("missing value", "2: region_id 1390: phrase"),
        FailedRow("malformed box", "2: region_id 1391: x, y, width, height is not a list of 4 numbers"),
        pair(2, "VG_100K", Region("a door", ((2.0, 3.0, 12.0, 11.0),))),
        FailedRow("unknown picture", "image_data.json has no picture 99"),
    ]


def test_visual_genome_questions(tmp_path: Path) -> None:
    read_rows = rows("vgqa", tmp_path)
    assert questions(read_rows, tmp_path) == [
        ("1", "VG_100K_2/1.jpg", [asked("What color is the clock?", "Green.")]),
        ("2", "VG_100K/2.jpg", [asked("How many doors?", "Two.")]),
    ]
    assert pairs_and_failures(read_rows)[1] == [FailedRow("missing value", "2: qa_id 986769: answer")]


def test_gqa_brings_the_questions_of_a_picture_together(tmp_path: Path) -> None:
    read_rows = rows("gqa", tmp_path)
    assert questions(read_rows, tmp_path) == [
        ("2354786", "images/2354786.jpg", [asked("Is the sky dark?", "yes"), asked("Is that pipe red?", "no")]),
        ("n161313", "images/n161313.jpg", [asked("What is on the white wall?", "pipe")]),
    ]
    assert pairs_and_failures(read_rows)[1] == [FailedRow("missing value", "imageId")]
    ids = [row.id for row in rows("gqa", tmp_path, "train_all") if isinstance(row, RawPair)]
    assert ids == [f"{image}:train_all_questions_{n}" for n in range(2) for image in ("2354786", "n161313")]


@pytest.mark.parametrize("name", ["vqav2", "okvqa"])
def test_questions_and_answers_in_two_files(name: str, tmp_path: Path) -> None:
    read_rows = rows(name, tmp_path, "val")
    first, second = (f"val2014/COCO_val2014_{number:012d}.jpg" for number in (42, 43))
    net = (Answer("net", 0.5), Answer("a net", 1.0), Answer("net", 0.5), Answer(""))  # the last one left it empty
    day = (Answer("yes", 1.0), Answer("yes", 0.5), Answer("no", 1.0))
    assert questions(read_rows, tmp_path) == [
        (first, first, [Question("What is this?", net), asked("What color is it?", "white")]),
        (second, second, [Question("Is it day?", day)]),
    ]
    assert pairs_and_failures(read_rows)[1] == [FailedRow("question without an answer", f"{first}: Who took it?")]


WRONG_ANSWERS = [
    ({"answers": None}, "question without an answer"),  # no list is an empty one
    ({"answers": [{"answer": "a", "answer_confidence": "certain"}]}, "unknown confidence"),
    ({"answers": [{"answer": "a", "answer_confidence": []}]}, "unknown confidence"),
    ({"answers": ["a"]}, "wrong type"),
    ({"answers": [{"answer": ["a"]}]}, "wrong type"),
    ({"answers": [{"answer": " "}]}, "question without an answer"),
    ({"question_id": 90}, "question answered twice"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG_ANSWERS)
def test_wrong_answers_fail_with_their_question(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    FIXTURES["vqav2"](tmp_path)
    file = tmp_path / "v2_mscoco_train2014_annotations.json"
    table = json.loads(file.read_text())
    table["annotations"][2] |= changes  # of "What color is it?", or of "What is this?" once more
    write_json(file, table)
    pairs, failures = pairs_and_failures(list(CORPORA["vqav2"].read(tmp_path)))
    assert [len(pair.questions) for pair in pairs] == ([1] if "question_id" in changes else [1, 1])
    assert reason in [failure.reason for failure in failures]


def test_vizwiz(tmp_path: Path) -> None:
    read_rows = rows("vizwiz", tmp_path)
    answers = (Answer("unanswerable"), Answer("soap", 0.5), Answer("unanswerable", 0.0), Answer("soap"))
    names = [f"train/VizWiz_train_{number:08d}.jpg" for number in range(2)]
    assert questions(read_rows, tmp_path) == [(name, name, [Question("What is this?", answers)]) for name in names]
    assert pairs_and_failures(read_rows)[1] == [FailedRow("missing value", "image")]


def test_textvqa(tmp_path: Path) -> None:
    read_rows = rows("textvqa", tmp_path, "val")
    lines = [asked(f"what is line {number}?", "nokia", "nokia lumia", "", "nokia") for number in range(3)]
    first, second = "train_images/0054c91397f2fe05.jpg", "train_images/ba3c0e0f5b0b0a2b.jpg"
    assert questions(read_rows, tmp_path) == [(first, first, lines[::2]), (second, second, [lines[1]])]
    assert len(read_rows) == 2


def test_st_vqa(tmp_path: Path) -> None:
    read_rows = rows("st_vqa", tmp_path)
    written = [asked("What is written?", "STOP", "STOP sign")]
    names = ("coco-text/COCO_train2014_000000000009.jpg", "IIIT_5K/img_1.jpg")
    assert questions(read_rows, tmp_path) == [(name, name, written) for name in names]
    assert [failure.reason for failure in pairs_and_failures(read_rows)[1]] == ["refused name"]


def test_ocr_vqa(tmp_path: Path) -> None:
    author = asked("Who is the author of this book?", "Sandra Boynton")
    title = asked("What is the title of this book?", "Mom's Family Wall Calendar")
    read_rows = rows("ocr_vqa", tmp_path)
    assert questions(read_rows, tmp_path) == [("0451450655", "images/0451450655.jpg", [author, title])]
    assert pairs_and_failures(read_rows)[1] == [FailedRow("question without an answer", "2 questions and 1 answers")]
    assert questions(rows("ocr_vqa", tmp_path, "test"), tmp_path) == [("B000", "images/B000.png", [author, title])]


def test_docvqa_of_both_archives(tmp_path: Path) -> None:
    number = [asked(f"What is number {n}?", "0.28", "0,28") for n in range(3)]
    for split, folder in (("train", "train/documents"), ("val", "spdocvqa_images")):
        read_rows = rows("docvqa", tmp_path, split)
        first, second = f"{folder}/xnbl0037_1.png", f"{folder}/txpp0227_10.png"
        assert questions(read_rows, tmp_path) == [(first, first, number[::2]), (second, second, [number[1]])]
        failure = FailedRow("question without an answer", f"{first}: No answers?")
        assert pairs_and_failures(read_rows)[1] == [failure]


def test_infovqa(tmp_path: Path) -> None:
    name = "infographicsvqa_images/20471.jpeg"
    for split in ("train", "val"):
        read_rows = rows("infovqa", tmp_path, split)
        expected = [asked("Which social platform has heavy female audience?", "pinterest")]
        assert questions(read_rows, tmp_path) == [(name, name, expected)]


def test_chartqa(tmp_path: Path) -> None:
    read_rows = rows("chartqa", tmp_path, "test")
    human = [
        ("test_human:test/png/41810321001157.png", "test/png/41810321001157.png", [asked("How many bars?", "3")]),
        ("test_human:test/png/multi_col_1.png", "test/png/multi_col_1.png", [asked("What is the sum?", "57.5")]),
    ]
    generated = [
        (
            "test_augmented:test/png/two_col_40.png",
            "test/png/two_col_40.png",
            [asked("What was the share in 2019?", "12.5%")],
        ),
        ("test_augmented:test/png/multi_col_1.png", "test/png/multi_col_1.png", [asked("Which year?", "2014")]),
    ]
    assert questions(read_rows, tmp_path) == human + generated
    failure = FailedRow("missing value", "test_augmented:test/png/multi_col_1.png: label")
    assert pairs_and_failures(read_rows)[1] == [failure]
    assert questions(rows("chartqa", tmp_path, "test_human"), tmp_path) == human


def test_dvqa(tmp_path: Path) -> None:
    read_rows = rows("dvqa", tmp_path, "val_hard")
    largest = [asked(f"Is bar {number} the largest?", "yes") for number in range(3)]
    first, second = "images/bar_train_00000001.png", "images/bar_train_00000002.png"
    assert questions(read_rows, tmp_path) == [(first, first, largest[::2]), (second, second, [largest[1]])]


@pytest.mark.parametrize(("split", "name"), [("train", "0.png"), ("test", "100.png")])
def test_ai2d(split: str, name: str, tmp_path: Path) -> None:
    read_rows = rows("ai2d", tmp_path, split)
    choices = ("ears", "nose", "mouth", "face")
    question = Question("What eats the fox?", (Answer("face"),), choices, 3)
    assert questions(read_rows, tmp_path) == [(name, f"images/{name}", [question])]
    assert pairs_and_failures(read_rows)[1] == [
        FailedRow("question without an answer", f"{name}: Which is it?"),
        FailedRow("letters that are not in the picture", f"{name}: What is A?"),
    ]


def test_ai2d_needs_the_list_of_its_test_set(tmp_path: Path) -> None:
    FIXTURES["ai2d"](tmp_path)
    (tmp_path / "ai2d_test_ids.csv").unlink()
    with pytest.raises(UserError, match="ai2d_test_ids"):
        list(CORPORA["ai2d"].read(tmp_path))


ANNOTATIONS = {
    "visual_genome": "region_descriptions.json",
    "vgqa": "question_answers.json",
    "gqa": "train_balanced_questions.json",
    "vqav2": "v2_mscoco_train2014_annotations.json",
    "okvqa": "OpenEnded_mscoco_train2014_questions.json",
    "vizwiz": "Annotations/train.json",
    "textvqa": "TextVQA_0.5.1_train.json",
    "st_vqa": "train_task_3.json",
    "ocr_vqa": "dataset.json",
    "docvqa": "train/train_v1.0.json",
    "infovqa": "infographicsvqa_qas/infographicsVQA_train_v1.0.json",
    "chartqa": "train/train_human.json",
    "dvqa": "qa/train_qa.json",
    "ai2d": "questions/0.png.json",
    "refcoco": "refcoco/instances.json",
}
REPLACEMENTS = (b"null", b"-1", b"1e999", b'""', b"[]", b"{}", b"true", b'"\\ud800"', b'"../../x"', b"{", b"\xff", b"")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(ANNOTATIONS))
def test_a_changed_value_fails_its_row_alone(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"changed_{name}"
    if not folder.exists():
        FIXTURES[name](folder)
    file = folder / ANNOTATIONS[name]
    whole = file.read_bytes()
    tokens = [index for index in range(len(whole)) if whole[index : index + 1] in b'0123456789"[{tfn']
    start = data.draw(st.sampled_from(tokens))
    end = min(start + data.draw(st.integers(1, 12)), len(whole))
    try:
        file.write_bytes(whole[:start] + data.draw(st.sampled_from(REPLACEMENTS)) + whole[end:])
        read_rows = list(CORPORA[name].read(folder))
    except UserError as error:
        assert "\n" not in str(error)
        return
    finally:
        file.write_bytes(whole)
    for row in read_rows:
        if isinstance(row, RawPair):
            row.id.encode()
            assert all(Path(picture.path).is_relative_to(folder) for picture in row.pictures)
            assert all(question.text.strip() and question.answers for question in row.questions)
        else:
            assert len(row.reason) < 40


def test_a_question_that_is_not_json_costs_only_itself(tmp_path: Path) -> None:
    annotated.write_pictures(tmp_path / "images", ["1.jpg"])
    good = json.dumps(gqa("1", "Is it?", "yes"))
    text = f'{{"1": {good}, "2": {{"question": nul}}, "3": {good}}}'
    (tmp_path / "train_balanced_questions.json").write_text(text)
    read_rows: list[Any] = list(CORPORA["gqa"].read(tmp_path))
    assert [type(row).__name__ for row in read_rows] == ["FailedRow", "RawPair"]
    assert read_rows[0].reason == "not JSON"
    assert len(read_rows[1].questions) == 2
