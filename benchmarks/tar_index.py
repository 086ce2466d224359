"""How fast WebDataset shards are indexed, against reading the same bytes, and how fast a large joined index opens.

    python benchmarks/tar_index.py index [--shards=24] [--samples=10000] [--picture_kb=25] [--processes=2] [--rounds=3]
    python benchmarks/tar_index.py open [--samples=100000000]

`index` writes shards as img2dataset does (a picture, a text and a JSON of 0.4 kB per sample, each with a pax header for
its time; every tenth text is Chinese), then alternates two sides with the same number of processes: reading every file
in blocks of 4 MiB, and indexing it. With the page cache dropped, both sides read from the disk; warm, both copy from
memory.

`open` makes a joined index of shards that do not exist (sparse files of their size), opens it in a new process as the
first process of a run does (listing the shards and comparing sizes and checksums) and as all others do, and reads the
rows of 20,000 random samples. Memory is the largest resident set of that process, with Python and all imports.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from etils import epath

from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.tar_files import TarReader, joined_path
from qwenvl_jax.data.readers.tar_joined import JoinedWriter
from qwenvl_jax.data.readers.tar_samples import LEFT_OUT, ShardIndex
from qwenvl_jax.runtime import storage

_BLOCK = 4 << 20
_CAPTION = "a photo of the old red house by the lake, with two dogs"
_CHINESE = "湖边的老红房子和两只狗"
_SAMPLES_PER_SHARD = 10_000
_SHARD_BYTES = 300_000_000
_ROWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("index", "open", "opened"))
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--picture_kb", type=float, default=25.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="")
    arguments = parser.parse_args()
    if arguments.what == "opened":
        opened(Path(arguments.folder))
        return
    with tempfile.TemporaryDirectory(prefix="tar-index-") as folder:
        if arguments.what == "index":
            samples = arguments.samples or _SAMPLES_PER_SHARD
            write_shards(Path(folder), arguments.shards, samples, arguments.picture_kb)
            compare(Path(folder), arguments.shards * samples, arguments.processes, arguments.rounds)
        else:
            opening(Path(folder), arguments.samples or 100_000_000)


def write_shards(folder: Path, shards: int, samples: int, picture_kb: float) -> None:
    """Shards of `samples` samples whose pictures have half to one and a half times `picture_kb`."""
    numbers = random.Random(0)
    picture = np.random.default_rng(0).bytes(int(2000 * picture_kb))
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for k in range(samples):
                caption = f"{_CAPTION if k % 10 else _CHINESE} {k}"
                notes: dict[str, str | int] = {"caption": caption, "key": f"{k:09d}", "status": "success"}
                notes |= {"url": f"https://example.com/images/{k}/photo.jpg", "width": 256, "height": 192}
                notes |= {"sha256": "ab" * 32, "exif": "{}" * 60}
                size = int(1000 * picture_kb * numbers.uniform(0.5, 1.5))
                payloads = {"jpg": picture[:size], "txt": caption.encode(), "json": json.dumps(notes).encode()}
                for suffix, payload in payloads.items():
                    member = tarfile.TarInfo(f"{k:09d}.{suffix}")
                    member.size = len(payload)
                    member.mtime = 1700000000.25  # webdataset writes fractions of seconds
                    archive.addfile(member, io.BytesIO(payload))


def read_shard(path: str) -> int:
    """Reads a file from end to end."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass
    return 0


def index_shard(path: str) -> int:
    """Indexes a shard and keeps the index; returns how many samples it has."""
    shard = epath.Path(path)
    entry = tar_index.with_checksum(shard, storage.entry(shard))
    return len(tar_index.index_shard(shard, entry, must_keep=True).samples_S)


def prepare(folder: Path, *, cold: bool) -> None:
    """Removes all indexes; drops the shards from the page cache if `cold`, else reads them into it."""
    for kept in folder.glob(".*.npz"):
        kept.unlink()
    for path in folder.glob("*.tar"):
        with path.open("rb") as file:
            if cold:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(_BLOCK):
                    pass


def compare(folder: Path, samples: int, processes: int, rounds: int) -> None:
    """Prints the rates of both sides and the median of their ratios, with the page cache dropped and warm."""
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    size = sum(os.path.getsize(path) for path in paths)
    sides: dict[str, Callable[[str], int]] = {"read": read_shard, "index": index_shard}
    print(f"{len(paths)} shards, {samples:,} samples, {size / 1e9:.2f} GB, {processes} processes")
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(abs, range(processes))  # imports
        for cold in (True, False):
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, side in sides.items():
                    prepare(folder, cold=cold)
                    start = time.perf_counter()
                    done = sum(pool.map(side, paths, chunksize=1))
                    rates[name].append(size / 1e6 / (time.perf_counter() - start))
                    assert name == "read" or done == samples
            ratio = statistics.median(b / a for a, b in zip(rates["read"], rates["index"], strict=True))
            read, index = (statistics.median(rates[name]) for name in sides)
            print(
                f"page cache {'dropped' if cold else 'warm'}: read {read:,.0f} MB/s, indexed {index:,.0f} MB/s "
                f"({samples / size * index * 1e6:,.0f} samples/s), ratio {ratio:.2f}",
                flush=True,
            )


def opening(folder: Path, samples: int) -> None:
    """Makes a joined index of `samples` samples and opens it in a new process."""
    shards = -(-samples // _SAMPLES_PER_SHARD)
    rng = np.random.default_rng(0)
    fields = [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]
    rows_S = np.zeros(_SAMPLES_PER_SHARD, [*fields, ("language", "S2"), ("key", "S9")])
    rows_S["language"] = rng.choice([b"en", b"zh"], len(rows_S))
    rows_S["text_size"] = rng.integers(10, 200, len(rows_S))
    start = time.perf_counter()
    with epath.Path(joined_path(str(folder), "*.tar", "")).open("wb") as file:
        writer = JoinedWriter(file)
        for number in range(shards):
            path = folder / f"{number:06d}.tar"
            with path.open("wb") as shard:
                shard.truncate(_SHARD_BYTES)
            rows_S["image"] = 512 * np.sort(rng.integers(1, _SHARD_BYTES // 512 - 100, len(rows_S)))
            rows_S["text"] = rows_S["image"] + 512 * 60
            rows_S["image_size"] = rng.integers(5000, 30_000, len(rows_S))
            rows_S["key"] = [b"%09d" % (number * _SAMPLES_PER_SHARD + k) for k in range(len(rows_S))]
            entry = tar_index.with_checksum(path, storage.entry(path))
            left = min(_SAMPLES_PER_SHARD, samples - number * _SAMPLES_PER_SHARD)
            index = ShardIndex(epath.Path(path), rows_S[:left], dict.fromkeys(LEFT_OUT, 0), {})
            writer.add(path.name, entry, index)
        writer.finish()
        size = file.tell()
    print(
        f"{samples:,} samples of {shards:,} shards: {size / 1e9:.2f} GB, {size / samples:.1f} bytes per sample, made "
        f"in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    with epath.Path(joined_path(str(folder), "*.tar", "")).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    subprocess.run([sys.executable, __file__, "opened", f"--folder={folder}"], check=True)


def opened(folder: Path) -> None:
    """Opens the joined index as the first process does, then as the others do, and reads random rows."""

    def memory() -> str:
        return f"largest resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"

    print(f"before: {memory()}")
    start = time.perf_counter()
    reader = TarReader(folder)
    print(f"first process: {len(reader):,} samples in {time.perf_counter() - start:.2f} s, {memory()}")
    findings = reader.findings()
    start = time.perf_counter()
    reader = TarReader(folder, findings)
    print(f"other processes: {len(reader):,} samples in {time.perf_counter() - start:.2f} s, {memory()}")
    numbers = random.Random(0)
    start = time.perf_counter()
    for _ in range(_ROWS):
        reader._index.location(numbers.randrange(len(reader)))
    seconds = time.perf_counter() - start
    print(f"{_ROWS:,} random rows: {1e6 * seconds / _ROWS:.0f} microseconds each, {memory()}")


if __name__ == "__main__":
    main()
