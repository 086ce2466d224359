"""Measures import and release of a full-size checkpoint against `cp` of the same bytes in one run, and peak memory.

    python benchmarks/conversion.py --scratch=/tmp/conversion [--share=0.5]

It writes random bfloat16 tensors in the published layout (19.3 GB), imports them, releases them again, and checks that
the bytes of all tensors are unchanged. Each time is from a cold page cache until the data is on disk. The disk of
--scratch needs three times the size; if it has less, both towers get as many layers as fit, and the output reports it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from etils import epath

from configs import model as model_configs
from qwenvl_jax.config import ModelConfig, from_config_dict
from qwenvl_jax.conversion import mapping, released_config, tensor_files
from qwenvl_jax.data.tokenizer import packaged_qwen_vocabulary

GIB = 1 << 30


def model_of(share: float) -> ModelConfig:
    """The full-size model with a share of its layers."""
    full = from_config_dict(ModelConfig, model_configs.qwen_vl_9b6())
    return dataclasses.replace(
        full,
        vit=dataclasses.replace(full.vit, layers=max(1, round(full.vit.layers * share))),
        decoder=dataclasses.replace(full.decoder, layers=max(1, round(full.decoder.layers * share))),
    )


def size_of(model: ModelConfig) -> int:
    """Bytes of all tensors in bfloat16."""
    return 2 * sum(math.prod(shape) for shape in mapping.shapes_of(model).values())


def write_source(folder: Path, model: ModelConfig) -> dict[str, str]:
    """Writes a checkpoint in the published layout with random values; returns the sha256 of every tensor."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, 1 << 24).astype(ml_dtypes.bfloat16).view(np.uint16)
    entries = [tensor_files.Entry(t.name, t.shape) for t in mapping.released_tensors(model)]
    shards = tensor_files.plan_shards(entries, "bfloat16", 2 * 10**9)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}

    def arrays(shard: Sequence[tensor_files.Entry]) -> Iterator[np.ndarray]:
        for entry in shard:
            start = int(rng.integers(noise.size))  # so that all tensors differ and a misplaced row is detected
            values = np.resize(np.roll(noise, start), entry.size).reshape(entry.shape).view(ml_dtypes.bfloat16)
            digests[entry.name] = hashlib.sha256(tensor_files.payload(values)).hexdigest()
            yield values

    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensor_files.write_shard(epath.Path(folder / name), shard, "bfloat16", arrays(shard))
        weight_map |= {entry.name: name for entry in shard}
    content = released_config.released_config(model, image_size=448, image_start_id=151857, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(content))
    (folder / tensor_files.INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shutil.copy(packaged_qwen_vocabulary(), folder / "qwen.tiktoken")
    return digests


def evict(folder: Path) -> None:
    """Writes a folder's files to the disk and drops them from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: Sequence[str | Path], source: Path) -> tuple[float, float]:
    """Seconds until the command's output is on the disk, and its peak memory in GiB."""
    evict(source)
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{command} failed")
    return seconds, usage.ru_maxrss * 1024 / GIB


def copied(source: Path, copy: Path) -> float:
    """Seconds of `cp -r`; the copy is removed again."""
    seconds, _ = timed(["cp", "-r", source, copy], source)
    shutil.rmtree(copy)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder to create and remove")
    parser.add_argument("--share", type=float, default=1.0, help="of the layers of both towers")
    arguments = parser.parse_args()
    scratch = arguments.scratch
    share = arguments.share
    scratch.mkdir(parents=True)
    while 3.1 * size_of(model_of(share)) > shutil.disk_usage(scratch).free:
        share *= 0.9
    model = model_of(share)
    gigabytes = size_of(model) / 1e9
    print(f"{gigabytes:.1f} GB: {model.vit.layers} ViT layers, {model.decoder.layers} decoder layers", file=sys.stderr)
    source, run, out, copy = (scratch / name for name in ("source", "run", "out", "copy"))
    convert = [sys.executable, "-m", "qwenvl_jax.convert"]
    try:
        digests = write_source(source, model)
        results: dict[str, dict[str, float]] = {}
        cp_seconds = copied(source, copy)
        seconds, peak = timed([*convert, "import", f"--release={source}", f"--workdir={run}"], source)
        results["import"] = {"cp_seconds": cp_seconds, "seconds": seconds, "peak_gib": peak}
        shutil.rmtree(source)
        cp_seconds = copied(run, copy)
        seconds, peak = timed([*convert, "release", f"--workdir={run}", f"--output={out}", "--noparity"], run)
        results["release"] = {"cp_seconds": cp_seconds, "seconds": seconds, "peak_gib": peak}
        written = json.loads((out / "manifest.json").read_text())["tensors"]
        equal = {name: about["sha256"] for name, about in written.items()} == digests
    finally:
        shutil.rmtree(scratch)
    for name, figures in results.items():
        figures["speed_of_cp"] = figures["cp_seconds"] / figures["seconds"]
        print(
            f"{name:8} {figures['seconds']:6.1f} s, cp {figures['cp_seconds']:6.1f} s: {figures['speed_of_cp']:.2f} of "
            f"cp's speed, peak {figures['peak_gib']:.2f} GiB"
        )
    print(json.dumps({"gigabytes": gigabytes, "tensors_equal": equal, **results}))
    if not equal:
        sys.exit("the released tensors are not those that were imported")


if __name__ == "__main__":
    main()
