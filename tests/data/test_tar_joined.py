"""Joined indexes of WebDataset shards: equal to separate ones, and what happens if they are damaged or do not fit."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.readers import tar_files, tar_index, tar_joined
from qwenvl_jax.data.readers.tar_files import TarReader, checked_entries, joined_path
from qwenvl_jax.data.readers.tar_joined import JoinedIndex, JoinedWriter, join_indexes
from qwenvl_jax.data.readers.tar_paths import base_and_pattern, find_shards
from qwenvl_jax.data.readers.tar_samples import LEFT_OUT, ShardIndex
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.runtime.storage import Entry
from tests.data.source_files import records_of, tar_sample, write_tar

pytestmark = pytest.mark.usefixtures("index_cache")


def join(path: epath.PathLike, folder: str = "") -> Path:
    """Joins the indexes of the shards that a path names; returns the file."""
    shards = checked_entries(find_shards(path))
    base, pattern = base_and_pattern(path, shards)
    target = joined_path(base, pattern, folder)
    for shard, entry in shards.items():
        tar_index.index_shard(epath.Path(shard), entry, folder, must_keep=True)
    samples, missing = join_indexes(target, base, shards, folder)
    assert samples and not missing
    return Path(target)


def test_a_joined_index_gives_the_same_records(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(shards / "00003.tar", [("x.jpg", b"no caption"), ("深.txt", b"no image"), *tar_sample(20)])
    apart = TarReader(shards)
    join(shards)
    monkeypatch.setattr(tar_index, "load_index", None)
    joined = TarReader(shards)
    other = TarReader(shards, joined.findings())
    pattern = TarReader(shards / "*.tar")  # has the same shards, so the same joined index
    for reader in (joined, other, pattern, pickle.loads(pickle.dumps(joined))):
        assert records_of(reader) == records_of(apart)
        assert reader.digest() == apart.digest() and reader.left_out == apart.left_out
        assert reader.samples == len(reader) == len(apart) == 14
    assert len(joined.findings()) < len(apart.findings())
    with pytest.raises(IndexError):
        joined[14]


def test_the_digest_is_the_one_of_earlier_versions(tmp_path: Path) -> None:
    """Checkpoints hold it: another digest would mean other records."""
    for number in range(2):
        samples = [(f"{k}.{kind}", b"%d" % k * size) for k in range(3) for kind, size in (("jpg", 900), ("txt", 9))]
        write_tar(tmp_path / f"{number}.tar", samples[2 * number :])
    expected = "23fca51adad17238b4413a4c4bd0b05d4c080c1f9a61223b009c07e9d23eb00d"
    assert TarReader(tmp_path).digest() == expected
    join(tmp_path)
    assert TarReader(tmp_path).digest() == expected


def test_shards_may_be_copied_touched_and_moved_with_their_indexes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(shards)
    expected = records_of(TarReader(shards))
    monkeypatch.setattr(tar_index, "scan_shard", None)
    os.utime(shards / "00000.tar", ns=(1, 1))
    copy = tmp_path / "elsewhere" / "laion"
    shutil.copytree(shards, copy)
    for folder in (shards, copy):
        assert records_of(TarReader(folder)) == expected
    for joined in copy.glob(".*.joined"):
        joined.unlink()
    assert records_of(TarReader(copy)) == expected


def test_an_index_folder(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "indexes"
    monkeypatch.setenv("QWENVL_INDEX_FOLDER", str(folder))
    expected = records_of(TarReader(shards))
    assert len(list(folder.iterdir())) == 3 and len(list(shards.iterdir())) == 3
    assert join(shards, str(folder)).parent == folder
    monkeypatch.setattr(tar_index, "load_index", None)
    assert records_of(TarReader(shards)) == expected


def test_a_process_that_does_not_see_what_the_first_has_made(
    shards: Path, index_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads some shards itself, but not all of a large source, as every other process would."""
    monkeypatch.setattr(tar_files, "_MANY", 2)
    first = TarReader(shards)
    assert (
        "3 of 3 shards have no index, which is made now; `python -m qwenvl_jax.index --path=" in capsys.readouterr().out
    )
    for kept in shards.glob(".00000*"):
        kept.unlink()
    assert records_of(TarReader(shards, first.findings())) == records_of(first)
    for kept in shards.glob(".*"):
        kept.unlink()
    with pytest.raises(
        UserError, match=r"no index for 3 of 3 shards, .* --index=FOLDER, a folder that all hosts share"
    ):
        TarReader(shards, first.findings())
    path = join(shards)
    joined = TarReader(shards)
    path.unlink()
    with pytest.raises(UserError, match="which the first process has opened, is not there for this one"):
        TarReader(shards, joined.findings())


def change(path: Path, start: int, length: int = 1) -> None:
    payload = bytearray(path.read_bytes())
    payload[start : start + length] = bytes(byte ^ 255 for byte in payload[start : start + length])
    path.write_bytes(payload)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(next(folder.glob(".*.joined")), 200), "cut off or damaged; remove it and run"),
        (lambda folder: os.truncate(next(folder.glob(".*.joined")), 0), "cut off or damaged; remove it and run"),
        (lambda folder: change(next(folder.glob(".*.joined")), -30), "cut off or damaged; remove it and run"),
        (lambda folder: change(next(folder.glob(".*.joined")), -100), "cut off or damaged; remove it and run"),
        (
            lambda folder: (folder / "00001.tar").unlink(),
            r"00001\.tar is missing, but in the joined index .* put it back",
        ),
        (
            lambda folder: write_tar(folder / "00009.tar", tar_sample(3)),
            r"00009\.tar is not in the joined index .*; run `python -m qwenvl_jax\.index --path=.*` again",
        ),
        (lambda folder: change(folder / "00001.tar", 3000), r"00001\.tar has changed since the joined index"),
    ],
    ids=["cut", "empty", "footer", "tables", "missing", "added", "changed"],
)
def test_a_joined_index_that_cannot_be_used(damage: Callable[[Path], object], message: str, shards: Path) -> None:
    join(shards)
    damage(shards)
    with pytest.raises(UserError, match=message):
        TarReader(shards)


def test_a_joined_index_that_is_damaged_or_gone_while_it_is_used(shards: Path) -> None:
    """It is no sample's fault, so it ends the run and is not counted as corrupt."""
    path = join(shards)
    reader = TarReader(shards)
    tar_joined._read_block.cache_clear()
    change(path, 20)
    with pytest.raises(StorageError, match="cut off or damaged"):
        reader[0]
    path.unlink()
    with pytest.raises(StorageError, match="is gone; put it back"):
        reader[0]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damage_to_a_joined_index_gives_another_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    write_tar(folder / "a.tar", [*tar_sample(0), *tar_sample(1)])
    path = join(folder)
    expected = records_of(TarReader(folder))
    payload = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(payload[: data.draw(st.sampled_from([len(payload)] * 3 + [len(payload) // 2]))])
    try:
        assert records_of(TarReader(folder)) == expected
    except (UserError, StorageError) as error:
        assert "cut off or damaged" in str(error)


def synthetic(name: str, samples: int, seed: int) -> ShardIndex:
    """Rows of a shard that does not exist."""
    rng = np.random.default_rng(seed)
    fields = [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]
    rows = np.zeros(samples, [*fields, ("language", "S5"), ("key", "S128")])
    rows["image"] = rng.integers(0, 1 << 32, samples) * 512
    rows["image_size"] = rng.integers(0, 1 << 31, samples)
    rows["text"] = rng.integers(0, 1 << 32, samples) * 512
    rows["text_size"] = rng.integers(0, (1 << 20) + 1, samples)
    rows["json"] = rng.integers(0, 2, samples)
    rows["language"] = rng.choice([b"en", b"zh", b"zh_CN"], samples)
    rows["key"] = [rng.bytes(int(rng.integers(1, 128))) + b"k" for _ in range(samples)]
    return ShardIndex(epath.Path(name), rows, dict.fromkeys(LEFT_OUT, 0), {})


@pytest.mark.parametrize("counts", [(0, 1), (255, 1, 1), (256,), (257, 0, 511), (3, 700, 64)])
def test_rows_are_those_that_were_written(counts: tuple[int, ...], tmp_path: Path) -> None:
    """Also for shards without samples, blocks of several shards, and the largest offsets and lengths."""
    indexes = [synthetic(f"{number}.tar", count, number) for number, count in enumerate(counts)]
    path = tmp_path / "x.joined"
    with path.open("wb") as file:
        writer = JoinedWriter(file)
        for index in indexes:
            writer.add(index.path.name, Entry(1 << 40, 0, "x"), index)
        writer.finish()
    joined = JoinedIndex(path)
    assert len(joined) == sum(counts)
    number = 0
    for shard, index in enumerate(indexes):
        for row in index.samples_S:
            read = joined.location(number)
            assert read.shard == shard and read.key == row["key"].decode("utf-8", "replace")
            assert [read.image, read.image_size, read.text, read.text_size, read.is_json, read.language] == [
                *row.tolist()[:5],
                row["language"].decode(),
            ]
            number += 1


def test_opening_reads_the_tables_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a sample reads its block: what is read does not grow with the number of samples."""
    path = tmp_path / "x.joined"
    with path.open("wb") as file:
        writer = JoinedWriter(file)
        for number in range(4):
            writer.add(f"{number}.tar", Entry(1 << 40, 0, "x"), synthetic(f"{number}.tar", 5000, number))
        writer.finish()
    sizes: list[int] = []
    read = tar_joined.storage.read_bytes

    def noted(where: epath.PathLike, start: int, size: int) -> bytes:
        sizes.append(size)
        return read(where, start, size)

    monkeypatch.setattr(tar_joined.storage, "read_bytes", noted)
    joined = JoinedIndex(path)
    assert len(joined) == 20_000 and sum(sizes) < 2000
    assert joined.location(12_345).shard == 2 and len(sizes) == 3
    assert sizes[2] < path.stat().st_size / 50


def test_what_a_row_cannot_hold_is_refused() -> None:
    writer = JoinedWriter(io.BytesIO())
    with pytest.raises(UserError, match=r"a\.tar is larger than 2 TiB"):
        writer.add("a.tar", Entry(1 << 41, 0), synthetic("a.tar", 1, 0))
    index = synthetic("b.tar", 1025, 0)
    index.samples_S["language"] = [f"en{k:03x}".encode() for k in range(1025)]
    with pytest.raises(UserError, match=r"b\.tar has more than 1,024 languages"):
        JoinedWriter(io.BytesIO()).add("b.tar", Entry(1, 0), index)
