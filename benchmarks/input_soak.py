"""The input of hours in minutes: memory, stalls and counts of the loader over many small samples, some of them broken.

Usage: python benchmarks/input_soak.py [SAMPLES]      (no accelerator; default 400,000, some minutes)

400,000 samples are what one of the 128 hosts of stage 2 on v5p:8x8x8 reads in two hours. The sources are a record
folder and WebDataset shards; every hundredth image is cut off, and one shard is cut in its middle. Every tenth of the
way one decoding process is killed. The script fails if memory grows, the counts are wrong, or a batch takes long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import sys
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from configs import stage2_multitask
from qwenvl_jax.config import SourceConfig, TokenizerConfig, load_config
from qwenvl_jax.data.loader import Loader, make_loader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import load_tokenizer

PER_SOURCE, PER_SHARD, SIZE = 5000, 1000, 28
GROWTH = 0.10  # of the largest memory in the first half
STALL = 20.0  # times the median time of a batch, and a second at least


def encoded(number: int) -> bytes:
    """A small JPEG; every hundredth ends early."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), np.uint8)
    payload = io.BytesIO()
    Image.fromarray(pixels).save(payload, "JPEG")
    return payload.getvalue()[: 200 if number % 100 == 7 else None]


def write_sources(folder: pathlib.Path) -> dict[str, int]:
    """Writes both sources; returns how many of the samples that can be found are corrupt, by source."""
    records = [
        Record(str(k), "caption", "soak", "en", "CC0-1.0", (encoded(k),), {"caption": f"a picture number {k}"})
        for k in range(PER_SOURCE)
    ]
    write_records(folder / "records", {"train": records}, name="soak")
    (folder / "shards").mkdir()
    for first in range(0, PER_SOURCE, PER_SHARD):
        with tarfile.open(folder / "shards" / f"{first:06}.tar", "w") as shard:
            for k in range(first, first + PER_SHARD):
                for suffix, payload in (("jpg", encoded(k)), ("txt", f"a picture number {k}".encode())):
                    member = tarfile.TarInfo(f"{k:09}.{suffix}")
                    member.size = len(payload)
                    shard.addfile(member, io.BytesIO(payload))
    cut = folder / "shards" / f"{PER_SHARD:06}.tar"
    os.truncate(cut, cut.stat().st_size // 2)
    left = []
    with tarfile.open(cut) as shard, contextlib.suppress(tarfile.ReadError):
        left += [int(member.name[:9]) for member in shard if member.name.endswith("txt")]
    whole = [k for k in range(PER_SOURCE) if not PER_SHARD <= k < 2 * PER_SHARD]
    return {"records": PER_SOURCE // 100, "shards": sum(k % 100 == 7 for k in [*whole, *left])}


def resident(process: int) -> float:
    """MiB of memory of a process that no other shares, so that buffers of pixels count once."""
    text = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


def main(samples: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        broken = write_sources(folder)
        mixture = tuple(SourceConfig(name, "caption", str(folder / name), 1.0) for name in ("records", "shards"))
        config = load_config(stage2_multitask.get_config())
        data = dataclasses.replace(
            config.data,
            mixture=mixture,
            image_size=SIZE,
            rows_per_step=64,
            accumulation=1,
            images_per_row=7.0,
            image_groups=8,
            streams=4,
            decode_workers=2,
        )
        config = dataclasses.replace(config, data=data)
        with make_loader(config, load_tokenizer(TokenizerConfig("qwen", ""))) as loader:
            run(loader, samples, broken)


def run(loader: Loader, samples: int, broken: dict[str, int]) -> None:
    times: list[float] = []
    memory: list[tuple[float, float]] = []
    start = time.perf_counter()
    print("samples  this process, MiB  workers, MiB  images/s")
    while (seen := sum(loader.counters()["seen"].values())) < samples:
        before = time.perf_counter()
        next(loader)
        times.append(time.perf_counter() - before)
        if seen >= samples * len(memory) / 10:
            workers = loader.workers()
            memory.append((resident(os.getpid()), max(map(resident, workers))))
            rate = seen / (time.perf_counter() - start)
            print(f"{seen:7d}  {memory[-1][0]:17.0f}  {memory[-1][1]:12.0f}  {rate:8.0f}", flush=True)
            os.kill(workers[0], 9)
    counters = loader.counters()
    print({key: counters[key] for key in ("seen", "corrupt", "dropped", "epochs", "token_fill", "image_fill")})
    middle = sorted(times)[len(times) // 2]
    print(f"batches took {middle:.3f} s (median) to {max(times):.3f} s")
    for source, number in broken.items():
        expected = counters["epochs"][source] * number
        corrupt = counters["corrupt"][source]
        assert abs(corrupt - expected) <= number, (
            f"{corrupt} corrupt samples of {source}, about {expected:.0f} expected"
        )
    half = len(memory) // 2
    for first, second in zip(zip(*memory[1:half], strict=True), zip(*memory[half:], strict=True), strict=True):
        assert max(second) < (1 + GROWTH) * max(first), f"memory grows from {max(first):.0f} to {max(second):.0f} MiB"
    assert max(times) < max(1.0, STALL * middle), "a batch took long"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400_000)
