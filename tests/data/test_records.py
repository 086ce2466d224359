"""Record folders: exact round trips, readable by TFDS and Grain, refused when incomplete."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.readers import record_folder
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_format import TEXT_FIELDS, decode_record, encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import TASKS, Record
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import make_record, with_content


@pytest.mark.parametrize("task", TASKS)
def test_records_come_back_equal(task: str) -> None:
    for k in range(6):
        assert decode_record(encode_record(make_record(task, k))) == make_record(task, k)


def test_broken_unicode_survives_a_record() -> None:
    sample = dataclasses.replace(make_record("text", 0), content={"text": "a\ud800\0 猫"})
    assert decode_record(encode_record(sample)) == sample


def test_the_reader_gives_what_was_written(record_folders: Path) -> None:
    reader = RecordReader(record_folders / "dialogue", verify=True)
    assert len(reader) == 23
    assert [reader[k] for k in (22, 0, 9)] == [make_record("dialogue", k) for k in (22, 0, 9)]
    assert list(reader) == [make_record("dialogue", k) for k in range(23)]
    for outside in (-1, 23):
        with pytest.raises(IndexError):
            reader[outside]


def test_a_shard_in_the_place_of_another_of_its_size_is_noticed(tmp_path: Path) -> None:
    train, held_out = ([make_record("text", k) for k in range(*numbers)] for numbers in ((0, 5), (5, 8)))
    write_records(tmp_path / "texts", {"train": train, "heldout": held_out}, name="texts")
    shards = {path.name.split("-")[1].split(".")[0]: path for path in (tmp_path / "texts").glob("*array_record*")}
    assert shards["train"].stat().st_size == shards["heldout"].stat().st_size
    shutil.copy(shards["heldout"], shards["train"])
    reader = RecordReader(tmp_path / "texts", "train")
    for k in range(5):
        with pytest.raises(UserError, match="3 records instead of 5, so it is another shard"):
            reader[k]


def test_tfds_reads_the_same_records(record_folders: Path) -> None:
    builder = tfds.builder_from_directory(str(record_folders / "ocr"))
    assert builder.info.splits["train"].num_examples == 23
    source = builder.as_data_source("train")
    assert len(source) == 23
    for k in (0, 9, 22):
        expected, found = make_record("ocr", k), source[k]
        assert found["id"].decode() == expected.id and found["license"].decode() == "CC0-1.0"
        assert json.loads(found["content"]) == expected.content
        np.testing.assert_array_equal(found["images"][0], np.asarray(decode_image(expected.images[0])))


def test_grain_reads_a_reader(record_folders: Path) -> None:
    dataset = grain.MapDataset.source(RecordReader(record_folders / "text")).map(lambda record: record.id)
    assert list(dataset) == [f"text{k}" for k in range(23)]


def test_encoding_equals_the_one_of_tfds(record_folders: Path) -> None:
    sample = make_record("dialogue", 1)
    features = tfds.builder_from_directory(str(record_folders / "dialogue")).info.features
    fields = {field: getattr(sample, field) for field in TEXT_FIELDS}
    content = json.dumps(sample.content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    encoded = features.serialize_example(
        features.encode_example({**fields, "images": list(sample.images), "content": content})
    )
    assert tf_example_pb2.Example.FromString(encoded) == tf_example_pb2.Example.FromString(encode_record(sample))


def test_manifest(record_folders: Path) -> None:
    manifest = record_folder.read_manifest(record_folders / "caption")
    train = manifest["splits"]["train"]
    assert train["records"] == train["images"] == 23
    assert train["tasks"] == {"caption": 23} and train["sources"] == {"caption_source": 23}
    assert train["languages"] == {"en": 19, "zh": 4} and train["licenses"] == {"CC0-1.0": 23}
    assert [shard["records"] for shard in train["shards"]] == [9, 9, 5]
    assert all(len(shard["sha256"]) == 64 for shard in train["shards"])


def test_writing_is_deterministic_and_replaces_whole_folders(tmp_path: Path) -> None:
    splits = {"train": [make_record("vqa", k) for k in range(5)], "test": [make_record("vqa", 5)]}
    first = write_records(tmp_path / "a", splits, name="vqa", extra={"rules": {"too_short": 3}})
    second = write_records(tmp_path / "b", splits, name="vqa", extra={"rules": {"too_short": 3}})
    assert first == second and first["extra"]["rules"] == {"too_short": 3}
    write_records(tmp_path / "a", {"train": splits["train"][:2]}, name="vqa")
    assert len(RecordReader(tmp_path / "a")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(UserError, match=r"no split 'test', only train"):
        RecordReader(tmp_path / "a", "test")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write_records(tmp_path / "a", {"train": [make_record("vqa", 1)]}, name="vqa")

    def failing() -> object:
        yield make_record("vqa", 2)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(tmp_path / "a", {"train": failing()}, name="vqa")  # type: ignore[dict-item]
    assert RecordReader(tmp_path / "a")[0] == make_record("vqa", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def broken(field: str, value: object) -> Record:
    changes: dict[str, Any] = {field: value}
    return dataclasses.replace(make_record("vqa", 1), **changes)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (broken("task", "captions"), "unknown task 'captions'; did you mean 'caption'"),
        (broken("license", ""), "has no license"),
        (broken("content", {"question": "a"}), "lacks answer"),
        (broken("images", ()), "0 images"),
    ],
)
def test_malformed_records_are_not_written(tmp_path: Path, sample: Record, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_records(tmp_path / "a", {"train": [make_record("vqa", 0), sample]}, name="vqa")
    assert not list(tmp_path.iterdir())


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        write_records(tmp_path / "a", {"train": []}, name="vqa")
    with pytest.raises(UserError, match="lower-case"):
        write_records(tmp_path / "a", {"train": [make_record("vqa", 0)]}, name="My Data")


def test_bytes_that_are_no_record() -> None:
    for payload in (b"", b"\xff\xff\xff", encode_record(make_record("vqa", 1))[:40]):
        with pytest.raises(UserError, match="not a record"):
            decode_record(payload)


def test_incomplete_folders(record_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        RecordReader(tmp_path / "none")
    folder = tmp_path / "copy"

    def copied() -> list[Path]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(record_folders / "text", folder)
        return sorted(folder.glob("*array_record*"))

    copied()
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        RecordReader(folder)
    copied()[1].unlink()
    with pytest.raises(UserError, match="is missing"):
        RecordReader(folder)
    shard = copied()[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="the manifest says"):
        RecordReader(folder)
    shard = copied()[2]
    payload = bytearray(shard.read_bytes())
    payload[200] ^= 1
    shard.write_bytes(payload)
    with pytest.raises(UserError, match="sha256"):
        RecordReader(folder, verify=True)
    copied()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["records"] = 24
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 23 records"):
        RecordReader(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="version 1"):
        RecordReader(folder)


def test_the_input_pipeline_imports_no_tensorflow_or_torch() -> None:
    code = (
        "import sys; from qwenvl_jax.data import loader; from tensorflow_datasets.proto import tf_example_pb2;"
        "print(sorted({'tensorflow', 'torch', 'apache_beam', 'flax', 'dashscope'} & set(sys.modules)))"
    )
    root = Path(record_folder.__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "[]"


def test_reading_imports_nothing(record_folders: Path) -> None:
    """While TFDS is imported, imports of other threads are not what they seem; threads that read then hang."""
    code = (
        "import sys; from qwenvl_jax.data.readers.record_folder import RecordReader; "
        "reader = RecordReader(sys.argv[1]); "
        "before = set(sys.modules); reader[0]; print(sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code, str(record_folders / "ocr")]
    root = Path(record_folder.__file__).parents[3]
    found = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "[]"


def content_of(task: str, **changes: object) -> Record:
    sample = make_record(task, 0)
    return with_content(sample, {**sample.content, **changes})


ASKED = {"role": "user", "parts": [{"text": "Hi"}]}
TEACH_NOTHING = [
    (content_of("caption", caption=None), "'caption' must be a text, not nothing"),
    (content_of("caption", caption=" \n"), "'caption' is empty"),
    (content_of("caption", caption=["a dog"]), "'caption' must be a text, not a list"),
    (content_of("vqa", answer=""), "'answer' is empty"),
    (content_of("vqa", question=7), "'question' must be a text, not a number"),
    (content_of("ref_grounding", phrase=None), "'phrase' must be a text"),
    (content_of("grounded_caption", description=""), "'description' is empty"),
    (content_of("grounded_caption", ref=3), "'ref' must be a text"),
    (content_of("grounding", segments=[]), "'segments' is empty"),
    (content_of("grounding", segments=[{"text": " "}, {"text": ""}]), "say nothing"),
    (content_of("grounding", segments=[{"text": None}]), "'text' must be a text"),
    (content_of("grounding", segments=[{"text": "", "boxes": [[1, 1, 2, 2]]}]), "'text' is empty"),
    (content_of("ocr", lines=[]), "'lines' is empty"),
    (content_of("ocr", lines=[{"text": "", "quad": [[1, 1]] * 4}]), "'text' is empty"),
    (content_of("text", text=""), "'text' is empty"),
    (with_content(make_record("text", 0), {"task": "caption", "words": "dog", "caption": ""}), "empty"),
    (dataclasses.replace(make_record("text", 0), content=["text"]), "is a list instead of an object"),  # type: ignore[arg-type]
    (content_of("dialogue", turns=["hello"]), "'turns' must list objects, not a text"),
    (content_of("dialogue", turns=[ASKED]), "no turn is the assistant's"),
    (content_of("dialogue", turns=[ASKED, {"role": "assistant", "parts": []}]), "says nothing"),
    (content_of("dialogue", turns=[ASKED, {"role": "assistant", "parts": [{"text": None}]}]), "must be a text"),
    (content_of("dialogue", sizes=[[28]]), r"\[width, height\]"),
]


@pytest.mark.parametrize(("sample", "message"), TEACH_NOTHING)
def test_records_that_teach_nothing_are_neither_written_nor_read(sample: Record, message: str) -> None:
    """Nor ones whose texts are none: JSON's null would be taught as the word None."""
    with pytest.raises(UserError, match=message):
        encode_record(sample)
    good = make_record(sample.task, 0)
    example = tf_example_pb2.Example.FromString(encode_record(good))
    example.features.feature["content"].bytes_list.value[0] = json.dumps(sample.content).encode()
    with pytest.raises(UserError, match=f"record '{good.id}'.*{message}"):
        decode_record(example.SerializeToString())


def test_a_record_nested_too_deeply_is_none() -> None:
    example = tf_example_pb2.Example.FromString(encode_record(make_record("text", 0)))
    example.features.feature["content"].bytes_list.value[0] = b"[" * 100_000
    with pytest.raises(UserError, match="not a record"):
        decode_record(example.SerializeToString())
