"""Texts whose accents are composed (NFC) or apart (NFD) are the same text to training, whatever source holds them."""

from __future__ import annotations

import dataclasses
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from qwenvl_jax.data.examples import make_example
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import TRAINING_TASKS, Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from tests.data.record_samples import SENTENCES, encoded_image, make_record
from tests.data.source_files import line_of, write_jsonl, write_tar

# Latin, Vietnamese, Japanese and Korean letters, and a Chinese character of compatibility: NFD changes each of them.
Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD")
WORDS = "café Việt ガラス 한국 \uf900"


def in_form(form: Form, value: Any) -> Any:
    """All texts of a content in a normal form."""
    if isinstance(value, str):
        return unicodedata.normalize(form, value)
    if isinstance(value, dict):
        return {key: in_form(form, entry) for key, entry in value.items()}
    return [in_form(form, entry) for entry in value] if isinstance(value, list) else value


def with_words(value: Any) -> Any:
    """A content of `make_record` with WORDS for its texts."""
    if isinstance(value, dict):
        return {key: WORDS if key == "answer" else with_words(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_words(entry) for entry in value]
    return value.replace("dog", WORDS).replace("cat", WORDS) if isinstance(value, str) else value


def record_in(form: Form, task: str) -> Record:
    record = make_record(task, 1)
    return dataclasses.replace(record, content=in_form(form, with_words(record.content)))


def ids(record: Record, tokenizer: Tokenizer) -> list[int]:
    return make_example(record, 0, tokenizer, 4).tokens.tokens_L.tolist()


@pytest.mark.parametrize("fixture", ["tokenizer", "qwen"])
@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_the_ids_of_every_task_are_those_of_nfc(
    task: str, fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In a record, and in a JSON file and a record folder that hold it."""
    tokenizer = request.getfixturevalue(fixture)
    apart = record_in("NFD", task)
    expected = ids(record_in("NFC", task), tokenizer)
    assert "café" in tokenizer.decode(expected)
    assert apart.content != record_in("NFC", task).content
    write_records(tmp_path / "records", {"train": [apart]}, name="apart")
    folder = RecordReader(tmp_path / "records")
    json_file = JsonReader(write_jsonl(tmp_path / "a.jsonl", [line_of(apart, tmp_path)]), task)
    for record in (apart, folder[0], json_file[0]):
        assert ids(record, tokenizer) == expected


def test_captions_of_tar_shards_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    readers = []
    for form in FORMS:
        members = [("a.png", encoded_image(0)), ("a.txt", unicodedata.normalize(form, WORDS).encode())]
        readers.append(TarReader(str(write_tar(tmp_path / f"{form}.tar", members))))
    composed, apart = (ids(reader[0], tokenizer) for reader in readers)
    assert composed == apart


def test_a_vocabulary_is_trained_on_one_form(tmp_path: Path) -> None:
    texts = [f"{sentence} {WORDS}" for sentence in SENTENCES]
    models = []
    for form in FORMS:
        train_sentencepiece([unicodedata.normalize(form, text) for text in texts], 600, tmp_path / form)
        models.append(np.frombuffer((tmp_path / form).read_bytes(), np.uint8))
    np.testing.assert_array_equal(models[0], models[1])
