"""Indexes of WebDataset shards on an object store: known by checksums, joined, and copied to the host."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from etils import epath

from qwenvl_jax.data.readers import tar_copies, tar_index, tar_joined
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.readers.tar_samples import ShardIndex
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.source_files import tar_sample, write_tar
from tests.data.test_tar_joined import join
from tests.support.faulty_gcs import between, told

Usage = namedtuple("Usage", "total used free")
COUNT = 405
# Of both shards and of both blocks of a joined index; every read is a request.
CHOSEN = sorted({0, 4, 5, 255, 256, COUNT - 1, *range(0, COUNT, 20)})


def some_of(reader: TarReader) -> list[Record]:
    """Some of the records."""
    assert len(reader) == COUNT
    return [reader[index] for index in CHOSEN]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwenvl_jax"


@pytest.fixture
def source(gcs: str, tmp_path: Path) -> str:
    """A folder of two shards, with 5 and 400 samples."""
    for number, keys in enumerate((range(5), range(5, COUNT))):
        shard = write_tar(tmp_path / "x.tar", [member for k in keys for member in tar_sample(k)])
        storage.write_bytes(f"{gcs}/laion/{number:05d}.tar", shard.read_bytes())
    return f"{gcs}/laion"


@pytest.fixture
def expected(source: str, cache: Path) -> list[Record]:
    return some_of(TarReader(source))


def joined_on(source: str) -> str:
    """Joins the indexes; returns the path of the file."""
    join(source)
    [name] = [name for name in storage.names(source) if name.endswith(".joined")]
    return f"{source}/{name}"


def test_a_shard_is_known_by_its_checksum(
    source: str, expected: list[Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same bytes written again keep the index; others of the same size do not."""
    payload = storage.read_bytes(f"{source}/00000.tar")
    storage.write_bytes(f"{source}/00000.tar", payload)
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "scan_shard", None)
        assert some_of(TarReader(source)) == expected
    other = payload.replace(b"caption 3", b"caption 7")
    assert len(other) == len(payload) and other != payload
    storage.write_bytes(f"{source}/00000.tar", other)
    scanned: list[str] = []
    scan = tar_index.scan_shard

    def noted_scan(path: epath.Path, size: int) -> ShardIndex:
        scanned.append(path.name)
        return scan(path, size)

    monkeypatch.setattr(tar_index, "scan_shard", noted_scan)
    assert TarReader(source)[3].content == {"caption": "caption 7"} and scanned == ["00000.tar"]


def test_a_joined_index_is_copied_once(
    source: str, expected: list[Record], cache: Path, gcs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = joined_on(source)
    reader = TarReader(source)
    assert some_of(reader) == expected
    [copy] = cache.glob("*.joined")
    assert copy.read_bytes() == storage.read_bytes(joined)
    monkeypatch.setattr(tar_copies, "_copy", None)
    with between(gcs_server, rate=0) as url:
        other = TarReader(source, reader.findings())
        opened = told(url)["requests"]
        assert opened <= 5
        assert other[5] == expected[CHOSEN.index(5)] and other.digest() == reader.digest()
        assert told(url)["requests"] == opened + 1  # the sample alone
    copy.write_bytes(copy.read_bytes()[:100])  # another size: copied again
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    assert some_of(TarReader(source)) == expected


@pytest.mark.parametrize("reason", ["full", "read-only"])
def test_without_room_for_a_copy_blocks_are_read_from_the_store(
    reason: str,
    source: str,
    expected: list[Record],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    joined_on(source)
    if reason == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1000))
    else:

        def refuse(folder: epath.PathLike) -> None:
            raise PermissionError(13, "Permission denied", str(folder))

        monkeypatch.setattr(tar_copies.storage, "make_folder", refuse)
    assert some_of(TarReader(source)) == expected
    assert not list(cache.glob("*.joined"))
    assert "every sample costs one more request" in capsys.readouterr().out


def test_faults_change_nothing(source: str, expected: list[Record], gcs_server: str) -> None:
    with between(gcs_server, rate=0.3, seed=2, kinds="503,429,reset,short"):
        joined_on(source)
        assert some_of(TarReader(source)) == expected


def test_a_joined_index_that_is_damaged(
    source: str, expected: list[Record], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = joined_on(source)
    reader = TarReader(source)
    [copy] = cache.glob("*.joined")
    payload = bytearray(copy.read_bytes())
    payload[100] ^= 1
    copy.write_bytes(payload)
    tar_joined._read_block.cache_clear()
    with pytest.raises(StorageError, match=f"{copy} is cut off or damaged; remove it and start again"):
        reader[3]
    storage.write_bytes(joined, storage.read_bytes(joined)[:-9])
    with pytest.raises(UserError, match=r"gs://.*\.joined is cut off or damaged; remove it and run the same `python"):
        TarReader(source)


def test_shards_that_were_added_or_removed(source: str, expected: list[Record]) -> None:
    joined_on(source)
    storage.write_bytes(f"{source}/00002.tar", storage.read_bytes(f"{source}/00000.tar"))
    with pytest.raises(
        UserError, match=r"00002\.tar is not in the joined index gs://.*; run `python -m qwenvl_jax\.index"
    ):
        TarReader(source)
    storage.remove(f"{source}/00002.tar")
    storage.remove(f"{source}/00001.tar")
    with pytest.raises(UserError, match=r"00001\.tar is missing, but in the joined index"):
        TarReader(source)
