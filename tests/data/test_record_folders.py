"""Record folders of many shards: how they are cut, what their manifests must say, and what other processes get."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config, SourceConfig, validate
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest
from qwenvl_jax.data.readers.shard_table import Names, ShardTable
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.readers.tfds_folder import TfdsReader
from qwenvl_jax.data.record_format import encode_record, shard_name
from qwenvl_jax.data.record_writer import Shard, write_manifest, write_records, write_shard
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import make_record, with_content
from tests.data.source_files import records_of, write_jsonl, write_tfds

Change = Callable[[dict[str, Any]], None]


def captions(count: int) -> list[Record]:
    return [make_record("caption", k) for k in range(count)]


def annotated(k: int, count: int) -> Record:
    """A record with several captions of its picture."""
    return with_content(make_record("caption", k), {"annotations": [{"caption": f"dog {j}"} for j in range(count)]})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits, five shards in all."""
    folder = tmp_path_factory.mktemp("written") / "records"
    splits = {"train": captions(11), "test": [make_record("caption", k) for k in range(11, 15)]}
    write_records(folder, splits, name="demo", records_per_shard=4)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "records"))


def change_manifest(folder: Path, change: Change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# How folders are cut into shards.


@given(
    count=st.integers(1, 12), bytes_per_shard=st.integers(1, 6_000), records_per_shard=st.none() | st.integers(1, 12)
)
@settings(deadline=None, max_examples=25)
def test_a_shard_ends_at_the_first_limit_that_is_reached(
    tmp_path_factory: pytest.TempPathFactory, count: int, bytes_per_shard: int, records_per_shard: int | None
) -> None:
    folder = tmp_path_factory.mktemp("cut") / "records"
    records = [make_record("text", k) for k in range(count)]
    manifest = write_records(
        folder, {"train": records}, name="cut", bytes_per_shard=bytes_per_shard, records_per_shard=records_per_shard
    )
    shards = [shard["records"] for shard in manifest["splits"]["train"]["shards"]]
    expected: list[list[int]] = [[]]
    for record in records:
        sizes = expected[-1]
        if sum(sizes) >= bytes_per_shard or len(sizes) == records_per_shard:
            expected.append(sizes := [])
        sizes.append(len(encode_record(record)))
    assert shards == [len(sizes) for sizes in expected]
    assert list(RecordReader(folder, verify=True)) == records


def test_small_folders_are_one_shard(tmp_path: Path) -> None:
    manifest = write_records(tmp_path / "a", {"train": [make_record("text", k) for k in range(5000)]}, name="a")
    assert [shard["records"] for shard in manifest["splits"]["train"]["shards"]] == [5000]


def test_records_are_written_as_they_come(tmp_path: Path) -> None:
    """A shard is never held in memory: when a record is asked for, all before it have been dropped."""
    alive: list[object] = []

    class Payload(bytes):
        def __del__(self) -> None:
            alive.remove(id(self))

    def records() -> Iterator[Record]:
        for k in range(40):
            assert len(alive) <= 2
            record = make_record("caption", k)
            image = Payload(record.images[0])
            alive.append(id(image))
            yield dataclasses.replace(record, images=(image,))
            del image, record

    write_records(tmp_path / "a", {"train": records()}, name="a")
    assert len(RecordReader(tmp_path / "a")) == 40


def test_what_a_killed_process_wrote_is_removed_by_the_next_one(tmp_path: Path) -> None:
    def killed() -> Iterator[Record]:
        yield make_record("caption", 0)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=write_records, args=(tmp_path / "a", {"train": killed()}), kwargs={"name": "a"}
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] != []
    write_records(tmp_path / "a", {"train": captions(3)}, name="a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_sort_by_their_numbers(tmp_path: Path) -> None:
    """Also beyond 99,999 shards, and as TFDS names them."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=tmp_path, dataset_name="laion", split="train", filetype_suffix="array_record"
    )
    for count in (1, 99_999, 100_000, 346_000):
        numbers = sorted({0, 1, 9, 10, 99, 9_999, 10_000, 99_999, count - 1} & set(range(count)))
        names = [shard_name("laion", "train", number, count) for number in numbers]
        assert names == sorted(names)
        assert names == [template.sharded_filepath(shard_index=n, num_shards=count).name for n in numbers]


# Samples.


def test_samples_are_counted_by_shard_and_split(tmp_path: Path) -> None:
    records = [annotated(0, 3), make_record("caption", 1), annotated(2, 2), make_record("caption", 3)]
    folder = tmp_path / "records"
    manifest = write_records(folder, {"train": records, "test": captions(1)}, name="demo", records_per_shard=3)
    train = manifest["splits"]["train"]
    assert (train["records"], train["samples"], [shard["samples"] for shard in train["shards"]]) == (4, 7, [6, 1])
    for reader in (RecordReader(folder), open_source(SourceConfig("a", "caption", str(folder), 1.0))):
        assert (len(reader), reader.samples) == (4, 7)
    assert RecordReader(folder, "test").samples == 1


def test_a_manifest_from_before_samples_were_counted(folder: Path) -> None:
    digest = RecordReader(folder).digest()

    def forget(manifest: dict[str, Any]) -> None:
        for summary in manifest["splits"].values():
            for entry in (summary, *summary["shards"]):
                del entry["samples"]

    change_manifest(folder, forget)
    reader = RecordReader(folder)
    assert (len(reader), reader.samples, reader.digest()) == (11, 11, digest)
    assert list(reader) == captions(11)


def test_samples_of_the_other_sources(tmp_path: Path, shards: Path, index_cache: Path) -> None:
    lines: list[Any] = [{"image": "a.png", "caption": "a dog"}, {"image": "a.png", "caption": None}]
    lines.append({"image": "a.png", "annotations": [{"caption": "a dog"}, {"caption": "a cat"}, {"caption": "x"}]})
    (tmp_path / "a.png").write_bytes(make_record("caption", 0).images[0])
    reader = JsonReader(write_jsonl(tmp_path / "a.jsonl", lines), "caption", 0.9)
    assert (len(reader), reader.corrupt, reader.samples) == (3, 1, 5)
    assert TarReader(shards).samples == 13
    name = write_tfds(tmp_path, [annotated(0, 3), make_record("caption", 1)])
    assert (len(TfdsReader(name, "caption")), TfdsReader(name, "caption").samples) == (2, 4)
    (tmp_path / "small" / "1.0.0" / "manifest.json").unlink()
    assert TfdsReader(name, "caption").samples == 2


# Manifests that are not true.


def put(*path: str | int, value: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        entry: Any = manifest["splits"]
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = value

    return change


TRAIN_1 = "demo-train.array_record-00001-of-00003"
WRONG = {
    "records of the split": (put("train", "records", value=12), "holds 11 records in 'train', the manifest says 12"),
    "records of a shard": (put("train", "shards", 1, "records", value=5), "holds 12 records .* says 11"),
    "samples of the split": (put("train", "samples", value=12), "holds 11 samples in 'train', the manifest says 12"),
    "tasks": (put("train", "tasks", value={"caption": 10}), "tasks of 'train' in .* count 10 of 11"),
    "sources": (put("train", "sources", value={}), "sources of 'train' in .* count 0 of 11"),
    "a shard in two splits": (put("test", "shards", 0, "file", value=TRAIN_1), f"{TRAIN_1} in 'test' and again in 'tr"),
    "a shard twice": (put("train", "shards", 0, "file", value=TRAIN_1), f"lists {TRAIN_1} in 'train' and again in 'tr"),
    "a count that is a text": (put("train", "tasks", value={"caption": "11"}), "manifest.json is damaged"),
    "samples without those of shards": (put("train", "shards", 0, value={}), "manifest.json is damaged"),
    "a count below zero": (put("train", "shards", 0, "samples", value=-4), "manifest.json is damaged"),
    "counts beyond 64 bits": (put("train", "shards", 0, "records", value=1 << 62), "the manifest says 11"),
    "a name that leads away": (put("train", "shards", 0, "file", value="../a"), "manifest.json is damaged"),
    "half a pair of surrogates": (put("train", "shards", 0, "file", value="\ud800"), "is missing although"),
    "an endless name": (put("train", "shards", 0, "file", value="x" * 300), "is missing although"),
    "a folder": (put("train", "shards", 0, "file", value="."), "is missing although"),
    "another size": (put("train", "shards", 1, "bytes", value=7), "has .* bytes, the manifest says 7; write"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_manifest_that_is_not_true(folder: Path, change: Change, message: str) -> None:
    change_manifest(folder, change)
    with pytest.raises(UserError, match=message) as error:
        RecordReader(folder)
    assert "\n" not in str(error.value)


def test_missing_shards_are_counted_and_the_first_is_named(folder: Path) -> None:
    shards = sorted(folder.glob("demo-train*"))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"{TRAIN_1} is missing although the manifest lists it; write"):
        RecordReader(folder)
    shards[2].unlink()
    with pytest.raises(UserError, match=rf"{TRAIN_1} is missing .* lists it \(and 1 more shard\); write the record"):
        RecordReader(folder)
    assert len(RecordReader(folder, "test")) == 4
    write_tfds(folder.parent, captions(15))
    for shard in (folder.parent / "small" / "1.0.0").glob("*array_record*"):
        shard.unlink()
    with pytest.raises(UserError, match=r"00000-of-00003 is missing although tfds:.* \(and 2 more shards\); prepare"):
        TfdsReader(f"tfds:small:1.0.0@{folder.parent}", "caption")


def test_files_that_no_manifest_lists_do_not_matter(folder: Path) -> None:
    for name in ("0", "demo-train.array_record-00000-of-00004", "demo-train.array_record-00001-of-00003.tmp", "zebra"):
        (folder / name).write_bytes(b"x")
    (folder / "demo-train").mkdir()
    assert list(RecordReader(folder)) == captions(11)


def test_hundreds_of_thousands_of_shards(tmp_path: Path) -> None:
    """The manifest keeps the order of the numbers, also where they get a sixth digit."""
    count = 100_001
    first = write_shard(tmp_path, "laion", "train", 0, count, captions(2))
    shards = [first]
    for index in (count - 1, 99_999, 7):
        file = shard_name("laion", "train", index, count)
        shards.append(Shard("train", file, 2, 2, 2, first.bytes, "0" * 64, *[{"caption": 2}] * 4))
    write_manifest(tmp_path, "laion", shards)
    listed = [shard["file"] for shard in read_manifest(tmp_path)["splits"]["train"]["shards"]]
    assert listed == [shard_name("laion", "train", index, count) for index in (0, 7, 99_999, 100_000)]


def test_two_sources_of_one_name(folder: Path, run_config: Config) -> None:
    source = SourceConfig("laion", "caption", str(folder), 1.0)
    data = dataclasses.replace(run_config.data, mixture=(source, dataclasses.replace(source, weight=2.0)))
    with pytest.raises(UserError) as error:
        validate(dataclasses.replace(run_config, data=data))
    assert str(error.value) == "two sources of config.data.mixture share one name (laion); rename one"


# What other processes get.


@given(
    names=st.lists(st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=9), unique=True, max_size=30),
    data=st.data(),
)
def test_a_table_comes_back_from_json(names: list[str], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 2**62), min_size=len(names), max_size=len(names)))
    table = ShardTable("gs://b/x", Names.of(names), np.array(counts, np.int64), 7, "abc", ("caption", "ocr"))
    back = ShardTable.unpacked(json.loads(json.dumps(table.packed())))
    assert [back.files[k] for k in range(len(back.files))] == names
    assert back.records_S.tolist() == counts and back.records_S.dtype == np.int64
    for field in ("folder", "samples", "digest", "tasks"):
        assert getattr(back, field) == getattr(table, field)
    for outside in (-1, len(names)):
        with pytest.raises(IndexError):
            back.files[outside]


def test_a_table_of_many_shards_is_small() -> None:
    """Ten bytes per shard of regular names and varying counts, in the JSON that every process of a run gets."""
    count = 50_000
    names = Names.of([shard_name("laion", "train", index, count) for index in range(count)])
    counts = np.random.default_rng(0).integers(11_000, 13_000, count)
    table = ShardTable("gs://bucket/laion", names, counts, 7, "0" * 64, ("caption",))
    assert len(json.dumps(table.packed())) < 10 * count


def test_a_folder_on_a_disk_is_read_by_each_process(folder: Path) -> None:
    """So that hosts whose folders differ are noticed by their digests; no file is looked for."""
    findings = RecordReader(folder).findings()
    before = RecordReader(folder, findings=findings)
    assert list(before) == captions(11)
    change_manifest(folder, put("train", "shards", 0, "sha256", value="0" * 64))
    assert RecordReader(folder, findings=findings).digest() != before.digest()
    for shard in folder.glob("*array_record*"):
        shard.unlink()
    assert len(RecordReader(folder, findings=findings)) == 11


@given(asked=st.lists(st.sampled_from(["a", "b", "ü", "c d", "none", "folder", "\ud800", "x" * 300]), unique=True))
def test_sizes_of_files_on_a_disk(tmp_path_factory: pytest.TempPathFactory, asked: Sequence[str]) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "folder").mkdir()
    sizes = {"a": 1, "b": 0, "ü": 20, "c d": 3}
    for name, size in sizes.items():
        (folder / name).write_bytes(bytes(size))
    assert storage.sizes_of(folder, asked) == {name: sizes[name] for name in asked if name in sizes}


def test_a_reader_may_be_sent_to_a_worker_process(folder: Path) -> None:
    reader = RecordReader(folder)
    assert reader[10] == make_record("caption", 10)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        assert workers.submit(records_of, reader).result(60) == captions(11)


def test_records_of_a_reader_and_a_source_are_equal(folder: Path) -> None:
    assert records_of(open_source(SourceConfig("a", "caption", str(folder), 1.0))) == captions(11)
