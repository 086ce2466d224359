"""The dialogues of a new kind that the quickstart's model is fine-tuned on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.quickstart import catalogue
from qwenvl_jax.data.dialogues import DialogueContent
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record, content_of
from qwenvl_jax.data.tasks import OcrContent
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import encoded_image

WORDS = ("fox", "bus", "owl", "train")
COUNTS = {"train": 30, "heldout": 9}


def picture(word: str, number: int, language: str = "en") -> Record:
    quad = [[1, 1], [9, 1], [9, 5], [1, 5]]
    content = OcrContent(lines=[{"text": word, "quad": quad}], width=16, height=16)
    return Record(f"ocr-{number}", "ocr", "test", language, "CC0-1.0", (encoded_image(number),), content)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "quickstart"
    splits = {}
    for offset, split in enumerate(COUNTS):
        pictures = [picture(word, 10 * offset + number) for number, word in enumerate(WORDS)]
        splits[split] = [*pictures, picture("狐狸", 90 + offset, "zh")]
    write_records(folder / "ocr", splits, name="ocr")
    return folder


def words_by_picture(source: Path, split: str) -> dict[bytes, str]:
    records = records_of(source / "ocr", split)
    return {record.images[0]: content_of(record, OcrContent)["lines"][0]["text"] for record in records}


def records_of(folder: Path, split: str) -> list[Record]:
    return list(RecordReader(folder, split))


def test_every_answer_is_the_entry_of_the_picture_it_was_asked_about(source: Path, tmp_path: Path) -> None:
    catalogue.build(source, tmp_path / "out", COUNTS)
    word_of = {split: words_by_picture(source, split) for split in COUNTS}
    for split, count in COUNTS.items():
        records = records_of(tmp_path / "out", split)
        assert len(records) == count
        assert {len(record.images) for record in records} == {1, 2}
        for record in records:
            training_pieces(record)  # raises if it is not well formed
            turns = content_of(record, DialogueContent)["turns"]
            assert len(turns) == 2 * len(record.images)
            asked = set()
            for question, answer in zip(turns[::2], turns[1::2], strict=True):
                number = int(question["parts"][-1]["text"].removeprefix("Catalogue Picture ").removesuffix("."))
                word = word_of[split][record.images[number - 1]]
                assert word in WORDS
                assert answer["parts"] == [{"text": f"Shelf {catalogue.shelf_of(word)}, {len(word)} letters."}]
                asked.add(number)
            assert asked == set(range(1, len(record.images) + 1))
    assert not set(word_of["train"]) & set(word_of["heldout"])
    assert len({catalogue.shelf_of(word) for word in WORDS}) > 1


def test_the_folder_is_a_function_of_its_input_and_stays(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        catalogue.build(source, tmp_path / name, COUNTS)
    assert read_manifest(tmp_path / "a") == read_manifest(tmp_path / "b")
    capsys.readouterr()
    catalogue.build(source, tmp_path / "a", COUNTS)
    assert "is up to date" in capsys.readouterr().out
    catalogue.build(source, tmp_path / "a", COUNTS | {"train": 31})
    assert len(records_of(tmp_path / "a", "train")) == 31
    other = catalogue.dialogue(np.random.default_rng(1), [picture("fox", 1), picture("owl", 2)], "x")
    assert other.license == "CC0-1.0"


def test_mistakes_are_one_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="does not exist"):
        catalogue.build(tmp_path / "none", tmp_path / "out", COUNTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(UserError, match="did not write; choose another --output"):
        catalogue.build(source, tmp_path / "mine", COUNTS)
    write_records(tmp_path / "few" / "ocr", {split: [picture("fox", 1)] for split in COUNTS}, name="ocr")
    with pytest.raises(UserError, match="fewer than two pictures of English words"):
        catalogue.build(tmp_path / "few", tmp_path / "out", COUNTS)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        catalogue.main([f"--input={source}", f"--output={tmp_path / 'out'}", "--train=0"])
    assert stopped.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err
