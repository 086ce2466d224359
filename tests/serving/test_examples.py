"""The questions that the page offers to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.serving.examples import MAX_EXAMPLES, examples_of
from tests.evaluation.samples import grey as picture


def dialogue(number: int, *parts: dict[str, Any], images: int = 1) -> Record:
    turns = [{"role": "user", "parts": list(parts)}, {"role": "assistant", "parts": [{"text": "Yes."}]}]
    content = cast(Content, {"turns": turns, "sizes": [[16, 16]] * max(1, images)})
    return Record(f"d{number}", "dialogue", "tests", "en", "CC0-1.0", (picture(16, 16),) * images, content)


def source(folder: Path, task: str = "dialogue") -> SourceConfig:
    return SourceConfig(name=task, task=task, records=str(folder), weight=1.0)


def test_first_questions_about_one_picture_are_offered_each_once(tmp_path: Path) -> None:
    image = {"image": 0}
    records = [dialogue(k, image, {"text": f"What is {k % 9}?"}) for k in range(30)]
    records += [
        dialogue(30, {"text": "Without a picture?"}, images=0),
        dialogue(31, image, {"image": 1}, {"text": "Of two pictures?"}, images=2),
        dialogue(32, image, {"text": "In "}, {"ref": "it", "boxes": [[1, 1, 9, 9]]}),
    ]
    write_records(tmp_path / "d", {"train": records[:1], "heldout": records}, name="dialogues")
    found = examples_of([source(tmp_path / "none"), source(tmp_path / "d")])
    questions = [example.question for example in found]
    assert len(set(questions)) == len(found) == MAX_EXAMPLES and set(questions) <= {f"What is {k}?" for k in range(9)}
    assert found[0].images == (picture(16, 16),) and found[0].media_type(0) == "image/png"


@pytest.mark.parametrize("records", ["/no/such/folder", "gs://bucket/records", "tfds:name", ""])
def test_without_such_records_there_are_none(records: str) -> None:
    assert examples_of([SourceConfig(name="x", task="dialogue", records=records, weight=1.0)]) == ()
