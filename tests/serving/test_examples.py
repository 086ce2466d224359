"""The questions that the page offers to try."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.dialogues import DialogueContent
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.record_format import encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record, content_of
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.serving.examples import MAX_EXAMPLES, ExampleQuestion, examples_of
from tests.data.damage import without_images, write_payloads
from tests.data.source_files import write_jsonl
from tests.evaluation.samples import grey as picture


def dialogue(number: int, *parts: dict[str, Any], images: int = 1) -> Record:
    turns = [{"role": "user", "parts": list(parts)}, {"role": "assistant", "parts": [{"text": "Yes."}]}]
    content = cast(Content, {"turns": turns, "sizes": [[16, 16]] * max(1, images)})
    return Record(f"d{number}", "dialogue", "tests", "en", "CC0-1.0", (picture(16, 16),) * images, content)


def source(folder: Path, task: str = "dialogue") -> SourceConfig:
    return SourceConfig(name=task, task=task, records=str(folder), weight=1.0)


def offered(
    config: Config, *mixture: SourceConfig, share: float = 0.0, measured: tuple[SourceConfig, ...] = ()
) -> tuple[ExampleQuestion, ...]:
    """The examples of a run of this mixture."""
    data = dataclasses.replace(config.data, mixture=mixture, heldout_share=share)
    evaluation = dataclasses.replace(config.evaluation, mixture=measured)
    return examples_of(dataclasses.replace(config, data=data, evaluation=evaluation))


def test_first_questions_about_one_picture_are_offered_each_once(config: Config, tmp_path: Path) -> None:
    image = {"image": 0}
    records = [dialogue(k, image, {"text": f"What is {k % 9}?"}) for k in range(30)]
    records += [
        dialogue(30, {"text": "Without a picture?"}, images=0),
        dialogue(31, image, {"image": 1}, {"text": "Of two pictures?"}, images=2),
        dialogue(32, image, {"text": "In "}, {"ref": "it", "boxes": [[1, 1, 9, 9]]}),
    ]
    write_records(tmp_path / "d", {"train": records[:1], "heldout": records}, name="dialogues")
    found = offered(config, source(tmp_path / "none"), source(tmp_path / "d"))
    questions = [example.question for example in found]
    assert len(set(questions)) == len(found) == MAX_EXAMPLES and set(questions) <= {f"What is {k}?" for k in range(9)}
    assert found[0].images == (picture(16, 16),) and found[0].media_type(0) == "image/png"


@pytest.mark.parametrize("records", ["/no/such/folder", "gs://bucket/records", "tfds:name", ""])
def test_without_such_records_there_are_none(config: Config, records: str) -> None:
    assert offered(config, SourceConfig(name="x", task="dialogue", records=records, weight=1.0)) == ()


def test_conversations_that_are_trained_on_are_not_offered(config: Config, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(16, 16))
    samples = [
        {
            "conversations": [
                {"from": "user", "value": f"Picture 1: <img>a.png</img>\nWhat is {number}?"},
                {"from": "assistant", "value": "Yes."},
            ]
        }
        for number in range(40)
    ]
    file = source(write_jsonl(tmp_path / "talk.jsonl", samples))
    assert offered(config, file) == ()
    trained_on = open_source(file, "train", heldout_share=0.2)
    turns = [content_of(trained_on[index], DialogueContent)["turns"] for index in range(len(trained_on))]
    taught = {first["parts"][-1]["text"].strip() for first, _ in turns}
    questions = {example.question for example in offered(config, file, share=0.2)}
    assert questions and questions <= {f"What is {number}?" for number in range(40)}
    assert taught and not questions & taught
    assert len(offered(config, measured=(file,))) == MAX_EXAMPLES


def test_damaged_records_are_passed_over(config: Config, tmp_path: Path) -> None:
    records = [dialogue(k, {"image": 0}, {"text": f"What is {k}?"}) for k in range(25)]
    payloads = [encode_record(record) for record in records]
    for k in range(0, 25, 5):
        payloads[k] = without_images(records[k])
        for j, image in enumerate((b"no picture", picture(16, 16)[:-60]), start=1):
            payloads[k + j] = encode_record(dataclasses.replace(records[k + j], images=(image,)))
        payloads[k + 3] = b"no record"
    records[24] = dialogue(24, {"image": 0}, {"text": "Half a pair: \ud83d?"})
    payloads[24] = encode_record(records[24])
    damaged = source(write_payloads(tmp_path / "d", payloads, records[0], "heldout"))
    assert {example.question for example in offered(config, damaged)} == {f"What is {k}?" for k in range(4, 24, 5)}
