"""Seconds from the start of a process to its first step: without a compilation cache, with an empty and a full one.

    python benchmarks/startup.py [--rounds=3]

Every start is a process of its own in a folder of its own, `python -m qwenvl_jax.train` of `small_stage.py`, whose
compilation dominates. The seconds are those of its ledger: up to the moment at which the first step is handed to the
devices, and those of them in which the loop waits for the compiler, which is at work while the weights are drawn.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import small_stage
from etils import epath

from qwenvl_jax.training.goodput import read_account

ROOT = pathlib.Path(__file__).parents[1]
SIDES = ("no cache", "empty cache", "full cache")


def start(folder: pathlib.Path, workdir: pathlib.Path, cache: str) -> tuple[float, float]:
    """Trains two steps; returns the seconds to the first step, and those of waiting for the compiler."""
    settings = [
        f"--config={ROOT}/benchmarks/small_stage.py:{folder}",
        f"--workdir={workdir}",
        f"--config.compute.compilation_cache={cache}",
        "--config.train.steps=2",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "qwenvl_jax.train", *settings]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    (only,) = read_account(epath.Path(workdir)).starts
    compiled = [interval for interval in only.intervals if "compilation" in interval.seconds]
    return compiled[-1].end - only.begin, sum(interval.seconds["compilation"] for interval in compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        small_stage.write_data(folder)
        for number in range(arguments.rounds):
            for side in SIDES:
                cache = "" if side == "no cache" else f"{folder}/cache-{number}"
                seconds[side].append(start(folder, folder / f"{side}-{number}".replace(" ", "-"), cache))
                print(f"{number + 1}/{arguments.rounds} {side:12} {seconds[side][-1][0]:.2f} s", file=sys.stderr)
    whole = {side: statistics.median(pair[0] for pair in pairs) for side, pairs in seconds.items()}
    waiting = {side: statistics.median(pair[1] for pair in pairs) for side, pairs in seconds.items()}
    for side in SIDES:
        print(
            f"{side:12} first step after {whole[side]:6.2f} s, of them waiting for the compiler {waiting[side]:6.2f} s"
        )
    print(f"full against empty cache: {whole['empty cache'] / whole['full cache']:.1f} times faster to the first step")


if __name__ == "__main__":
    main()
