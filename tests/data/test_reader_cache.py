"""Readers of shards: few are open at a time, none is closed under a thread that uses it, and every record is right."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.readers import reader_cache
from qwenvl_jax.data.readers.reader_cache import INDEX_BYTES, READER_BYTES, ReaderCache
from qwenvl_jax.data.readers.shards import Shards

ROOT = Path(__file__).parents[2]
SHARDS = 30
RECORDS = 4
SECONDS = 30.0  # after which a thread that waits has failed


class RecordingReader:
    """A reader that must not be read from or closed once it is closed."""

    def __init__(self) -> None:
        self.closed = False

    def read(self, positions: list[int], /) -> list[bytes]:
        assert not self.closed
        return [b""] * len(positions)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def write_shard(path: Path, texts: list[str]) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    for text in texts:
        writer.write(text.encode())
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        write_shard(folder / f"s{shard:02d}", [f"{shard}/{k}" for k in range(RECORDS)])
    return folder


def shards_of(folder: Path) -> Shards:
    return Shards(folder, [f"s{shard:02d}" for shard in range(SHARDS)], [RECORDS] * SHARDS)


def open_files(folder: Path) -> int:
    """How many descriptors of this process are files of a folder."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
        except FileNotFoundError:  # closed by another thread
            continue
    return count


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: ReaderCache) -> None:
    monkeypatch.setattr(reader_cache, "shared", lambda: cache)


@given(seed=st.integers(0, 2**32 - 1), limit=st.integers(1, 8), threads=st.integers(1, 8))
@settings(deadline=None, max_examples=25)
def test_every_record_is_right_whatever_is_evicted(folder: Path, seed: int, limit: int, threads: int) -> None:
    """Several threads read at random from more shards than may be open."""
    with pytest.MonkeyPatch.context() as patch:
        use_cache(patch, ReaderCache(limit))
        shards = shards_of(folder)
        order = list(range(SHARDS * RECORDS)) * 3
        random.Random(seed).shuffle(order)
        most = 0
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for index, payload in zip(order, pool.map(shards.__getitem__, order), strict=True):
                assert payload.decode() == f"{index // RECORDS}/{index % RECORDS}"
                most = max(most, open_files(folder))
        # Each thread may hold one reader and be closing another.
        assert most <= limit + 2 * threads
        assert open_files(folder) <= limit


def test_a_reader_in_use_is_closed_by_its_last_user() -> None:
    cache = ReaderCache(1)
    first, second = RecordingReader(), RecordingReader()
    with cache.borrowed(("a", 0), 1, lambda: first) as used:
        assert used is first
        with cache.borrowed(("a", 1), 1, lambda: second):
            assert len(cache) == 2 and not first.closed
        assert second.closed and not first.closed
        cache.drop(("a", 0))
        assert not first.closed
        with cache.borrowed(("a", 0), 1, RecordingReader) as another:
            assert another is not first
    assert first.closed
    assert len(cache) == 1


def test_the_least_recently_used_reader_is_closed_first() -> None:
    cache = ReaderCache(3)
    readers = [RecordingReader() for _ in range(5)]
    for number in (0, 1, 2, 0, 3, 0, 4):
        with cache.borrowed(("a", number), 1, functools.partial(readers.__getitem__, number)):
            pass
    assert [reader.closed for reader in readers] == [False, True, True, False, False]


def test_a_shard_that_opens_slowly_does_not_keep_others_waiting() -> None:
    """Nor does one that is read slowly; two threads that want one shard open it once."""
    cache = ReaderCache(4)
    read_another = threading.Event()
    opened = []

    def open_slowly() -> RecordingReader:
        assert read_another.wait(SECONDS)
        opened.append("slow")
        return RecordingReader()

    def read(key: tuple[str, int]) -> None:
        with cache.borrowed(key, 1, open_slowly) as reader:
            reader.read([0])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, ("a", 0)) for _ in range(2)]
        with cache.borrowed(("a", 1), 1, RecordingReader) as reader:
            reader.read([0])
        cache.drop(("a", 1))
        read_another.set()
        for one in waiting:
            one.result(SECONDS)
    assert opened == ["slow"]


def test_a_shard_that_cannot_be_opened_is_tried_again() -> None:
    cache = ReaderCache(2)

    def fail() -> RecordingReader:
        raise RuntimeError("no such shard")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="no such shard"), cache.borrowed(("a", 0), 1, fail):
            pass
    with cache.borrowed(("a", 0), 1, RecordingReader) as reader:
        assert reader.read([0]) == [b""]


def test_memory_is_limited_too() -> None:
    """Shards of many short records have large indexes."""
    count = 1_000_000
    cache = ReaderCache(100, most_bytes=3 * (READER_BYTES + INDEX_BYTES * count))
    readers = [RecordingReader() for _ in range(6)]
    for number in range(len(readers)):
        with cache.borrowed(("a", number), count, functools.partial(readers.__getitem__, number)):
            pass
    assert [reader.closed for reader in readers] == [True] * 3 + [False] * 3


def test_readers_of_a_source_that_is_gone_are_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, ReaderCache(100))
    shards = shards_of(folder)
    for shard in range(SHARDS):
        shards[shard * RECORDS]
    assert open_files(folder) == SHARDS
    del shards
    gc.collect()
    shards_of(folder)[0]
    assert open_files(folder) == 1


def test_a_folder_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_shard(tmp_path / "s", [text])
        assert Shards(tmp_path, ["s"], [1])[0].decode() == text


def test_descriptors_stay_within_what_the_shell_allows(folder: Path) -> None:
    """`ulimit -n 40` leaves 20 for shards, and all 30 shards can be read."""
    code = (
        "import os, resource, sys\n"
        "from qwenvl_jax.data.readers import reader_cache\n"
        "from qwenvl_jax.data.readers.shards import Shards\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        f"shards = Shards(sys.argv[1], [f's{{k:02d}}' for k in range({SHARDS})], [{RECORDS}] * {SHARDS})\n"
        "assert [shards[k].decode() for k in range(len(shards))][-1] == '29/3'\n"
        "print(len(reader_cache.shared()), len(os.listdir('/proc/self/fd')))\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    readers, descriptors = map(int, ended.stdout.split())
    assert readers == 20 and descriptors <= 30
