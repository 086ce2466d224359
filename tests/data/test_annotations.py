"""Records with several samples of one image: what they hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.data.formats import prompt_pieces, training_pieces
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.record_format import decode_record, encode_record
from qwenvl_jax.data.schema import check_record, sample_count, samples_of
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import content, encoded_image, make_record, with_content

QUESTIONS = [{"question": "What is this?", "answer": "a dog"}, {"question": "Is it red?", "answer": "no"}]


def test_every_annotation_is_a_sample_with_the_shared_keys() -> None:
    phrases = [{"box": [1, 2, 9, 9]}, {"phrase": "a cat", "box": [3, 2, 9, 9]}]
    shared = {"phrase": "a dog", "width": 28, "height": 28}
    record = with_content(make_record("ref_grounding", 1), {"annotations": phrases, **shared})
    samples = samples_of(decode_record(encode_record(record)))
    assert sample_count(record) == 2
    assert [content(sample) for sample in samples] == [
        {"phrase": "a dog", "box": [1, 2, 9, 9], "width": 28, "height": 28},
        {"phrase": "a cat", "box": [3, 2, 9, 9], "width": 28, "height": 28},
    ]
    assert [sample.id for sample in samples] == [f"{record.id}[0]", f"{record.id}[1]"]
    assert all(sample.images == record.images for sample in samples)


def test_a_record_without_annotations_is_its_only_sample() -> None:
    record = make_record("caption", 1)
    assert samples_of(record) == (record,)
    assert sample_count(record) == 1


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "'annotations' is empty"),
        ("a dog", "'annotations' must be a list"),
        ([None], "must list objects"),
        ([*QUESTIONS, {"question": "Why?"}], "annotation 3: it lacks answer"),
        ([{"annotations": QUESTIONS}], "has 'annotations' of its own"),
    ],
)
def test_annotations_are_checked(annotations: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_record(with_content(make_record("vqa", 1), {"annotations": annotations}))


def test_annotations_cannot_state_several_sizes_of_their_image() -> None:
    """Only one can be right, and the picture is compared with its size only once."""
    phrases = [{"phrase": "a dog", "box": [1, 2, 9, 9]}, {"phrase": "a cat", "box": [3, 2, 9, 9], "width": 14}]
    record = with_content(make_record("ref_grounding", 1), {"annotations": phrases, "width": 28, "height": 28})
    with pytest.raises(UserError, match="annotation 2 states the size 14 x 28 of the image, and the first one 28 x 28"):
        check_record(record)


@pytest.mark.parametrize("task", ["text", "dialogue"])
def test_tasks_that_are_not_about_one_image_have_no_annotations(task: str) -> None:
    with pytest.raises(UserError, match=f"not those of the task {task!r}"):
        check_record(with_content(make_record(task, 1), {"annotations": [{"text": "a dog"}]}))


def test_an_evaluation_refuses_annotations() -> None:
    with pytest.raises(UserError, match="one record per sample"):
        prompt_pieces(with_content(make_record("vqa", 1), {"annotations": QUESTIONS}))


def test_a_json_line_may_have_annotations(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(1))
    lines = [
        {"image": "a.png", "annotations": QUESTIONS},
        {"image": "a.png", "annotations": [{"question": "Why?"}]},
        {"image": "a.png", **QUESTIONS[0]},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    reader = JsonReader(path, "vqa", max_corrupt_share=0.5)
    assert reader.corrupt == 1
    both = samples_of(reader[0])
    assert training_pieces(both[0]) == training_pieces(reader[2])
    assert [piece.value for piece in training_pieces(both[1]) if piece.supervised] == [" no", "<|endoftext|>"]
    with pytest.raises(UserError, match=r"line 2.*annotation 1: it lacks answer"):
        reader[1]
