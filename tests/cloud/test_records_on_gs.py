"""Record folders on an object store: the bytes of those on a disk, and what cannot be read is told from damage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records, write_shard
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.record_samples import make_record
from tests.support.faulty_gcs import between, told

COUNT, PER_SHARD = 30, 8


def made(count: int = COUNT, start: int = 0) -> list[Record]:
    return [make_record("caption", index) for index in range(start, start + count)]


def write(folder: object, count: int = COUNT) -> None:
    write_records(folder, {"train": made(count), "test": made(5)}, name="demo", records_per_shard=PER_SHARD)


def contents(folder: object) -> dict[str, bytes]:
    root = storage.path(str(folder))
    return {name: storage.read_bytes(root / name) for name in storage.names(root)}


@pytest.fixture
def folder(gcs: str) -> str:
    write(f"{gcs}/data/demo")
    return f"{gcs}/data/demo"


def flip(folder: str, shard: int, share: float) -> None:
    """Changes one byte of a shard, the same size as before."""
    path = f"{folder}/demo-train.array_record-{shard:05d}-of-00004"
    payload = bytearray(storage.read_bytes(path))
    payload[int(len(payload) * share)] ^= 1
    storage.write_bytes(path, bytes(payload))


def readable(reader: RecordReader) -> tuple[list[str], list[int]]:
    """Ids of the records that can be read, and numbers of those that are damaged."""
    read, damaged = [], []
    for index in range(len(reader)):
        try:
            read.append(reader[index].id)
        except UserError:
            damaged.append(index)
    return read, damaged


def test_equal_to_the_byte(folder: str, tmp_path: Path) -> None:
    write(tmp_path / "demo")
    on_disk = contents(tmp_path / "demo")
    assert contents(folder) == on_disk and len(on_disk) == 8
    assert [record.id for record in RecordReader(folder, verify=True)] == [record.id for record in made()]
    assert storage.names(storage.path(folder).parent) == ["demo"]


def test_tfds_reads_it(folder: str) -> None:
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == COUNT


def test_a_folder_that_is_replaced(folder: str) -> None:
    write(folder, count=9)
    assert [record.id for record in RecordReader(folder)] == [record.id for record in made(9)]
    assert sum("train" in name for name in storage.names(folder)) == 2


def test_killed_while_it_is_replaced(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment, what is left is the whole old folder or one that nobody takes for finished."""
    old, left, store = contents(folder), 10**9, type(storage._store())

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return original(*args)

        return call

    for name in ("write", "write_file", "rename", "remove"):
        monkeypatch.setattr(store, name, counted(getattr(store, name)))
    outcomes = set()
    for allowed in range(40):
        left = allowed
        try:
            write(folder, count=9)
        except KeyboardInterrupt:
            left = 10**9
        else:
            outcomes.add("new")
            break
        if storage.exists(f"{folder}/manifest.json"):
            assert contents(folder) == old
            outcomes.add("old")
        else:
            with pytest.raises(UserError, match=r"has no manifest.json|does not exist"):
                RecordReader(folder)
            outcomes.add("unfinished")
            write(folder)
    assert outcomes == {"old", "unfinished", "new"}


def test_a_finished_folder_takes_no_more_shards(folder: str, tmp_path: Path) -> None:
    write(tmp_path / "demo")
    for finished in (folder, tmp_path / "demo"):
        before = contents(finished)
        with pytest.raises(UserError, match="finished record folder already"):
            write_shard(finished, "demo", "train", 0, 4, made(1))
        assert contents(finished) == before


def test_damage_costs_the_record(folder: str, tmp_path: Path) -> None:
    """The same records as on a disk, and nothing is tried for minutes."""
    write(tmp_path / "demo")
    flip(folder, 1, 0.15)
    flip(str(tmp_path / "demo"), 1, 0.15)
    read, damaged = readable(RecordReader(folder))
    assert damaged and set(damaged) <= set(range(PER_SHARD, 2 * PER_SHARD))
    assert (read, damaged) == readable(RecordReader(tmp_path / "demo"))
    with pytest.raises(UserError, match=rf"gs://.*, record {damaged[0] - PER_SHARD}: damaged \("):
        RecordReader(folder)[damaged[0]]
    with pytest.raises(UserError, match="sha256"):
        RecordReader(folder, verify=True)


def test_faults_never_count_as_damage(folder: str, gcs_server: str) -> None:
    flip(folder, 1, 0.15)
    undisturbed = readable(RecordReader(folder))
    with between(gcs_server, rate=0.1, seed=3, kinds="503,reset,short") as url:
        assert readable(RecordReader(folder)) == undisturbed
        assert sum(told(url)["faults"].values())


def test_writing_under_faults(gcs: str, gcs_server: str, tmp_path: Path) -> None:
    write(tmp_path / "demo")
    with between(gcs_server, rate=0.15, seed=5, kinds="408,429,500,502,504,reset,lost,short") as url:
        write(f"{gcs}/demo")
        assert sum(told(url)["faults"].values()) > 3
    assert contents(f"{gcs}/demo") == contents(tmp_path / "demo")


@pytest.mark.parametrize("kinds", ["503", "hang"])
def test_a_fault_that_does_not_end(folder: str, gcs_server: str, monkeypatch: pytest.MonkeyPatch, kinds: str) -> None:
    """It is never damage: one sentence after the stated time, and what was opened before can be read again."""
    reader = RecordReader(folder)
    monkeypatch.setenv("QWENVL_STORAGE_PATIENCE", "1")
    with between(gcs_server, rate=1, kinds=kinds):
        for attempt in (lambda: reader[3], lambda: RecordReader(folder), lambda: write(folder)):
            with pytest.raises(StorageError, match="could not be reached for 1 seconds") as error:
                attempt()
            assert "\n" not in str(error.value)
    assert [record.id for record in reader] == [record.id for record in made()]


def test_a_shard_that_is_gone(folder: str) -> None:
    reader = RecordReader(folder)
    storage.remove(f"{folder}/demo-train.array_record-00001-of-00004")
    with pytest.raises(StorageError, match="was there when it was opened and is gone"):
        reader[PER_SHARD]
    with pytest.raises(UserError, match="is missing although the manifest lists it"):
        RecordReader(folder)


def test_random_order_and_threads(folder: str) -> None:
    import concurrent.futures

    reader, order = RecordReader(folder), list(range(COUNT)) * 3
    random.Random(0).shuffle(order)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda index: reader[index].id, order)) == [
            make_record("caption", index).id for index in order
        ]


def test_shards_are_named_before_anything_is_written(gcs: str) -> None:
    with pytest.raises(UserError, match="has no records"):
        write_records(f"{gcs}/demo", {"train": []}, name="demo")
    assert not storage.exists(f"{gcs}/demo")
