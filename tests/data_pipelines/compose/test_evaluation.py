"""Evaluation records: every question of a pair with the publisher's ids, and pictures as they are, missing ones too."""

from __future__ import annotations

import dataclasses
import errno
import io
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.clean.evaluation import evaluation_pictures
from data_pipelines.clean.rule import Rewritten
from data_pipelines.compose.evaluation import evaluation
from data_pipelines.compose.vqa import vqa
from data_pipelines.pair import Answer, Picture, Question, RawPair, Region
from qwenvl_jax.data.schema import Record, stated_sizes
from qwenvl_jax.runtime import storage
from tests.support.corpora.pictures import HEIGHT, WIDTH, picture

SHOT = Picture(picture(1), "", WIDTH, HEIGHT)
EMPTY = RawPair("7", "tests", "CC0-1.0", "en", (SHOT,))
BOX = (1.0, 2.0, 10.0, 12.5)


def composed(**changes: Any) -> tuple[Record, tuple[str, ...]]:
    """The record of a pair after the rule, and the causes that the rule counts."""
    verdict = evaluation_pictures(dataclasses.replace(EMPTY, **changes))
    assert isinstance(verdict, Rewritten)
    record = evaluation(verdict.pair)
    assert record is not None
    return record, verdict.causes


def content(record: Record) -> dict[str, Any]:
    return cast(dict[str, Any], record.content)


def test_every_field_of_a_question_is_kept() -> None:
    whole = Question("Who? ", (Answer("a"), Answer("")), ("a", "b"), 0, "N/A", id="9", category="people", group="g")
    hidden = Question("Where?", (), id="10")
    record, causes = composed(questions=(whole, hidden))
    assert causes == ()
    assert (record.id, record.task, record.source, record.language) == ("7", "evaluation", "tests", "en")
    assert record.images == (SHOT.encoded,)
    assert content(record) == {
        "questions": [
            {
                "id": "9",
                "text": "Who? ",
                "answers": ["a", ""],
                "options": ["a", "b"],
                "right": 0,
                "hint": "N/A",
                "category": "people",
                "group": "g",
            },
            {"id": "10", "text": "Where?"},
        ]
    }
    trained = vqa(dataclasses.replace(EMPTY, questions=(whole, hidden)))
    assert trained is not None and "annotations" not in trained.content  # the hidden one teaches nothing


def test_captions_are_one_question_with_all_references() -> None:
    record, _ = composed(texts=("a dog", "the dog"), number="139")
    assert content(record) == {"questions": [{"id": "139", "answers": ["a dog", "the dog"]}]}
    record, _ = composed(texts=("a dog",))
    assert content(record)["questions"][0]["id"] == "7"


def test_phrases_have_the_box_and_the_size_of_the_picture() -> None:
    record, causes = composed(regions=(Region("the dog", (BOX,), id="3"), Region("left", (BOX,))))
    assert causes == ()
    assert content(record) == {
        "questions": [
            {"id": "3", "text": "the dog", "box": list(BOX)},
            {"id": "7#1", "text": "left", "box": list(BOX)},
        ],
        "width": WIDTH,
        "height": HEIGHT,
    }
    assert stated_sizes(record) == [(WIDTH, HEIGHT)]


def test_a_pair_without_a_picture_and_with_several() -> None:
    asked = (Question("Who?", (Answer("a"),), id="1"),)
    assert composed(questions=asked, pictures=())[0].images == ()
    assert composed(questions=asked, pictures=(SHOT,) * 3)[0].images == (SHOT.encoded,) * 3
    assert evaluation(EMPTY) is None


@pytest.mark.parametrize(("payload", "cause"), [(None, "picture missing"), (b"<html>", "picture unreadable")])
def test_a_lost_picture_is_counted_and_its_questions_stay(payload: bytes | None, cause: str, tmp_path: Path) -> None:
    shot = Picture(path=str(tmp_path / "a.jpg"))
    if payload is not None:
        (tmp_path / "a.jpg").write_bytes(payload)
    record, causes = composed(questions=(Question("Who?", (Answer("a"),), id="1"),), pictures=(shot,))
    assert causes == (cause,)
    assert record.images == (payload or b"",)
    record, causes = composed(regions=(Region("the dog", (BOX,), id="3"),), pictures=(shot,))
    assert causes == (cause,)
    assert (content(record)["width"], content(record)["height"]) == (11, 13)


def test_a_picture_that_another_try_may_read_fails_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files must not become a missing picture."""

    def no_more_files(path: str) -> bytes:
        raise OSError(errno.EMFILE, "too many open files", path)

    monkeypatch.setattr(storage, "read_bytes", no_more_files)
    with pytest.raises(OSError, match="too many open files"):
        composed(texts=("a dog",), pictures=(Picture(path="a.jpg"),))


def test_the_bytes_of_a_picture_stay_as_they_are() -> None:
    turned = Image.new("RGB", (WIDTH, HEIGHT))
    exif = turned.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    record, causes = composed(texts=("a dog",), pictures=(Picture(buffer.getvalue()),))
    assert record.images == (buffer.getvalue(),) and causes == ()


def test_boxes_follow_the_picture() -> None:
    """Stated twice as large; stated in another shape; partly and wholly outside; not one box."""
    double = dataclasses.replace(SHOT, width=2 * WIDTH, height=2 * HEIGHT)
    record, causes = composed(regions=(Region("dog", (BOX,)),), pictures=(double,))
    assert content(record)["questions"][0]["box"] == [0.5, 1.0, 5.0, 6.25]
    assert causes == ("picture of another size than stated; boxes scaled",)
    tall = dataclasses.replace(SHOT, width=WIDTH, height=3 * HEIGHT)
    record, causes = composed(regions=(Region("dog", (BOX,)),), pictures=(tall,))
    assert content(record)["height"] == 3 * HEIGHT and causes == ("picture of another shape than stated",)
    outside = (WIDTH + 1.0, 0.0, WIDTH + 9.0, 5.0)
    beyond = (1.0, -3.0, WIDTH + 9.0, 5.0)
    regions = (Region("a", (outside,)), Region("b", (beyond,)), Region("c", (BOX, BOX)), Region("d", ()))
    record, causes = composed(regions=regions)
    assert [(each["text"], each["box"]) for each in content(record)["questions"]] == [("b", [1, 0, WIDTH, 5])]
    assert causes == ("box clipped to the picture", "phrase without one box in the picture left out")


@given(st.lists(st.sampled_from(["", " ", "1", "1#2", "7", "7#1", "猫"]), min_size=1, max_size=8))
def test_ids_are_unique_and_the_first_of_each_is_the_publishers(ids: list[str]) -> None:
    record, _ = composed(questions=tuple(Question("Who?", (Answer("a"),), id=each) for each in ids))
    given_ids = [question["id"] for question in content(record)["questions"]]
    assert len(set(given_ids)) == len(ids)
    assert {each for each in ids if each.strip()} <= set(given_ids)
