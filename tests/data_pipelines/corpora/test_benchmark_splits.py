"""The ids that publishers give, hidden test sets, and the other things that only an evaluation needs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.corpora.json_index import indexed
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import FailedRow, RawPair
from tests.support.corpora.pictures import picture
from tests.support.corpora.table import FIXTURES
from tests.support.corpora.tables import write_file, write_json


def pairs(name: str, split: str, folder: Path) -> list[RawPair]:
    if not any(folder.iterdir()):
        FIXTURES[name](folder)
    return [row for row in CORPORA[name].read(folder, split) if isinstance(row, RawPair)]


IDS = [
    ("gqa", "testdev", ["02930152", "07333405", "07333408"], {"verify"}),
    ("vqav2", "val", ["420", "421", "430"], {"other"}),
    ("vqav2", "test_dev", ["161"], {""}),
    ("vqav2", "test", ["161", "160", "11", "10"], {""}),
    ("okvqa", "val", ["420", "421", "430"], {"other"}),
    ("vizwiz", "val", ["VizWiz_val_00000000.jpg", "VizWiz_val_00000001.jpg"], {"other"}),
    ("vizwiz", "test", ["VizWiz_test_00000000.jpg"], {""}),
    ("textvqa", "val", ["0", "2", "1"], {""}),
    ("textvqa", "test", ["39602"], {""}),
    ("docvqa", "val", ["337", "339", "338"], {"table/list, form"}),
    ("docvqa", "test", ["57344"], {""}),
    ("infovqa", "test", ["65718"], {""}),
    ("ocr_vqa", "test", ["B000#0", "B000#1"], {""}),
    ("ai2d", "test", ["0-0"], {""}),
]
HIDDEN = {("vqav2", "test_dev"), ("vqav2", "test"), ("vizwiz", "test"), ("textvqa", "test")}
HIDDEN |= {("docvqa", "test"), ("infovqa", "test")}


@pytest.mark.parametrize(("name", "split", "ids", "categories"), IDS)
def test_questions_keep_the_ids_of_their_publisher(
    name: str, split: str, ids: list[str], categories: set[str], tmp_path: Path
) -> None:
    questions = [question for pair in pairs(name, split, tmp_path) for question in pair.questions]
    assert [question.id for question in questions] == ids
    assert {question.category for question in questions} == categories
    for question in questions:
        assert bool(question.answers) == ((name, split) not in HIDDEN)


def test_a_question_without_an_answer_still_fails_in_a_set_that_has_answers(tmp_path: Path) -> None:
    FIXTURES["vizwiz"](tmp_path)
    write_json(tmp_path / "val.json", [{"image": "VizWiz_val_00000000.jpg", "question": "What is this?"}])
    (row,) = CORPORA["vizwiz"].read(tmp_path, "val")
    assert isinstance(row, FailedRow) and row.reason == "question without an answer"


def test_captions_keep_the_number_of_their_picture(tmp_path: Path) -> None:
    expected = {
        "nocaps": ("val", ["0", "1"], "near-domain"),
        "flickr30k": ("test", ["1000092798"], ""),
        "coco_karpathy": ("test", ["391898"], ""),
    }
    for name, (split, numbers, category) in expected.items():
        (tmp_path / name).mkdir()
        read_pairs = pairs(name, split, tmp_path / name)
        assert [pair.number for pair in read_pairs] == numbers
        assert {pair.category for pair in read_pairs} == {category}


@pytest.mark.parametrize("name", ["refcoco", "refcoco_plus", "refcocog"])
def test_phrases_keep_their_ids(name: str, tmp_path: Path) -> None:
    for split in ("val", "test" if name == "refcocog" else "test_b"):
        ids = [region.id for pair in pairs(name, split, tmp_path) for region in pair.regions]
        assert len(set(ids)) == len(ids) > 1 and all(each.isdecimal() for each in ids)


def test_letters_replace_the_labels_of_a_diagram(tmp_path: Path) -> None:
    """The rectangle is white but for its letter; everything else is as it was."""
    FIXTURES["ai2d"](tmp_path)
    write_file(tmp_path / "images/100.png", picture(3, "PNG", 64, 48))
    labels = {
        "T0": {"id": "T0", "rectangle": [[10, 8], [40, 24]], "value": "sun", "replacementText": "A"},
        "T1": {"id": "T1", "rectangle": [[1, 1], [5, 5]], "value": "title"},
    }
    write_json(tmp_path / "annotations/100.png.json", {"text": labels, "blobs": {}})
    plain, lettered = pairs("ai2d", "test", tmp_path)
    assert (plain.id, lettered.id) == ("100.png", "100.png:letters")
    (question,) = lettered.questions
    assert (question.text, question.id, question.right) == ("What is A?", "0-1", 1)
    before, after = (
        np.asarray(Image.open(io.BytesIO(pair.pictures[0].read())).convert("RGB")).astype(int)
        for pair in (plain, lettered)
    )
    label = (slice(8, 25), slice(10, 41))
    assert 0 < (after[label] < 128).all(-1).sum() < 100  # the letter
    assert (after[label] > 250).all(-1).mean() > 0.7
    after[label] = before[label]
    assert (after == before).all()


@pytest.mark.parametrize("labels", [{}, {"T0": {"rectangle": [[1, 2]], "replacementText": "A"}}, {"T0": 7}, []])
def test_labels_that_cannot_be_drawn_cost_their_questions(labels: object, tmp_path: Path) -> None:
    FIXTURES["ai2d"](tmp_path)
    write_json(tmp_path / "annotations/100.png.json", {"text": labels})
    assert [pair.id for pair in pairs("ai2d", "test", tmp_path)] == ["100.png"]


NAMES = st.text(max_size=20) | st.sampled_from(['"', '\\"', '": ', "\\\\", '{"a": "', "猫"])


@given(st.dictionaries(NAMES, st.integers() | st.text(max_size=9) | st.dictionaries(NAMES, NAMES, max_size=2)))
def test_members_of_an_index_have_their_names(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "members.json"
    for text in (json.dumps(table), json.dumps(table, ensure_ascii=False, indent=2)):
        path.write_text(text)
        with indexed(path, "", lambda name, value: len(name) % 2) as index:
            members = [*index.members(0), *index.members(1)]
        assert dict(members) == table and len(members) == len(table)
