"""Compares saving and restoring a checkpoint with plain writes and reads of the same bytes on the same disk.

    python -m benchmarks.checkpoint_io [--gigabytes=0.75] [--folder=/tmp] [--local=/dev/shm] [--repeats=5]

Every round writes and reads the bytes plainly and as a checkpoint, so that both meet the same load of the machine:
plain writes end with fsync, as the files of a checkpoint do, and before every read the files leave the page cache. A
local checkpoint (`checkpoint/local.py`) is written and read in the same folder, or in `--local`, as it is used: without
fsync, and read from the page cache. Then
steps of a stand-in for training run alone and while a checkpoint is written. Medians over the rounds:

- GB/s of a save until the checkpoint is finished, and of a restore with all checks, each over the plain one;
- the seconds that a save takes longer than one without checksums of files and sums of arrays, over those of a save;
- the seconds that a save adds to training, over the time of as many steps as a stage has between two checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from configs import base, stage1_pretrain
from qwenvl_jax.checkpoint import checksums, file_checksums, lineage
from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.checkpoint.manager import Checkpoints
from qwenvl_jax.checkpoint.restore import newest_state
from qwenvl_jax.config import load_config
from qwenvl_jax.params import PyTree

LEAVES = 8  # of the parameters; each of the two moments has as many
BLOCK = 16 << 20
INTERVAL = base.train("pretrain", (), 1)["checkpoint_every"]


def make_state(gigabytes: float) -> tuple[PyTree, PyTree]:
    """Parameters and moments, float32 [rows, 1024] each."""
    rows = int(gigabytes * 1e9 / (3 * LEAVES * 1024 * 4))

    def tree(seed: int) -> PyTree:
        rng = np.random.default_rng(seed)
        return {f"leaf{k}": jnp.asarray(rng.standard_normal((rows, 1024), np.float32)) for k in range(LEAVES)}

    return tree(0), {"mu": tree(1), "nu": tree(2)}


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def forget(folder: Path) -> None:
    """Writes everything to the disk and drops the files of a folder from the page cache."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write_plainly(file: Path, leaves: list[np.ndarray]) -> None:
    """The bytes of all leaves as one file, on the disk when it returns."""
    with file.open("wb", buffering=0) as stream:
        for leaf in leaves:
            payload = leaf.reshape(-1).view(np.uint8).data
            for start in range(0, len(payload), BLOCK):
                stream.write(payload[start : start + BLOCK])
        os.fsync(stream.fileno())


def read_plainly(file: Path) -> None:
    """Reads a file into one buffer."""
    buffer = memoryview(bytearray(file.stat().st_size))
    with file.open("rb", buffering=0) as stream:
        start = 0
        while count := stream.readinto(buffer[start : start + BLOCK]):
            start += count


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Checkpoints are saved without checksums of files and without sums of arrays."""
    with (
        mock.patch.object(file_checksums, "write"),
        mock.patch.object(file_checksums, "complete"),
        mock.patch.object(file_checksums, "Follower"),
        mock.patch.object(checksums, "start", lambda tree: {}),
    ):
        yield


def save(run: Path, step: int, state: tuple[PyTree, PyTree]) -> tuple[float, float]:
    """Seconds until training could go on, and until the checkpoint is finished."""
    with Checkpoints(run, keep=1) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(step, *state, {})
        blocking = time.perf_counter() - began
        checkpoints.wait()
        return blocking, time.perf_counter() - began


def measure_round(folder: Path, state: tuple[PyTree, PyTree], turn: int) -> dict[str, float]:
    """Seconds of one round, by what was done; `turn` counts the rounds."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    timings = {}
    plain = folder / "plain"
    timings["plain write"] = seconds(lambda: write_plainly(plain, leaves))
    forget(folder)
    timings["plain read"] = seconds(lambda: read_plainly(plain))
    plain.unlink()
    runs = {"save, no checksums": folder / "bare", "save": folder / "run"}
    for key in runs if turn % 2 else reversed(runs):  # none of the two always follows the other
        os.sync()
        with without_checksums() if key == "save, no checksums" else contextlib.nullcontext():
            timings[f"{key}, blocking"], timings[key] = save(runs[key], 1, state)
    forget(folder)
    run = runs["save"]
    timings["restore"] = seconds(lambda: jax.block_until_ready(newest_state(run, *state)[1:3]))
    for run in runs.values():
        shutil.rmtree(run)
    return timings


def measure_local(root: Path, run: Path, state: tuple[PyTree, PyTree]) -> dict[str, float]:
    """Seconds of a local checkpoint in a folder; `run` has the lineage that names it."""
    checkpoints = LocalCheckpoints(str(root), run)
    with checkpoints.after(0):
        began = time.perf_counter()
        checkpoints.save(1, *state, {})
        blocking = time.perf_counter() - began
        checkpoints.wait()
        whole = time.perf_counter() - began
    restore = seconds(lambda: jax.block_until_ready((checkpoints.read_and_check(1, *state)[0] or ())[:2]))
    checkpoints.remove()
    return {"local save, blocking": blocking, "local save": whole, "local restore": restore}


def measure_training(folder: Path, state: tuple[PyTree, PyTree], steps: int) -> dict[str, float]:
    """Seconds of steps alone, and of as many during which a checkpoint is written."""
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 4, lambda _, y: jnp.tanh(y @ y), x))
    x = jnp.full((1024, 1024), 1e-3)

    def train() -> None:
        y = x
        for _ in range(steps):
            y = step(y)
            y.block_until_ready()

    train()
    alone = seconds(train)
    with Checkpoints(folder / "trained", keep=1) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(1, *state, {})
        train()
        while checkpoints.writing is not None:  # a save that outlasts the steps
            time.sleep(0.001)
        during = time.perf_counter() - began
        alone_after = seconds(train)
    return {"steps alone": (alone + alone_after) / 2, "steps with a save": during}


def main() -> None:
    """Measures and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=0.75)
    parser.add_argument("--folder", default=None, help="On the disk to measure; default the temporary one.")
    parser.add_argument("--local", default=None, help="For local checkpoints; default the temporary one.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="Of the stand-in for training.")
    options = parser.parse_args()
    state = make_state(options.gigabytes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        tempfile.TemporaryDirectory(dir=options.local) as fast,
    ):
        lineage.write(Path(name), load_config(stage1_pretrain.get_config()), {})
        rounds = [
            measure_round(Path(name), state, turn) | measure_local(Path(fast), Path(name), state)
            for turn in range(options.repeats + 1)
        ][1:]  # the first one compiles
        training = [measure_training(Path(name) / str(k), state, options.steps) for k in range(options.repeats)]
    timings = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    for key, value in timings.items():
        print(f"{key:30} {value:7.3f} s  {size / value:6.2f} GB/s")
    print(f"save over plain write    {timings['plain write'] / timings['save']:.0%}")
    print(f"restore over plain read  {timings['plain read'] / timings['restore']:.0%}")
    print(f"local save over save     {timings['local save'] / timings['save']:.0%}")
    print(f"checksums over save      {1 - timings['save, no checksums'] / timings['save']:.1%}")
    added = statistics.median(each["steps with a save"] - each["steps alone"] for each in training)
    step = statistics.median(each["steps alone"] for each in training) / options.steps
    print(f"a save of {size:.2f} GB adds {added:.2f} s to training; a step takes {step:.3f} s")
    for length in (step, 1.0):
        print(f"share of {INTERVAL} steps of {length:.3f} s: {added / (INTERVAL * length):.2%}")


if __name__ == "__main__":
    main()
