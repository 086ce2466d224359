"""Cleaning of web pairs: pairs per second and core, 1 against 2 workers, and memory from 10^4 to 10^6 rows.

Usage: python -m benchmarks.cleaning [--speed_rows=20000] [--memory_rows=10000,100000,1000000] [--peer_python=..]

Half an hour. With `--peer_python`, the interpreter of an environment with py-data-juicer 1.6.1, `cleaning_peer.py`
cleans the same rows with the operators of data-juicer in one process.

Speed is measured on Parquet shards of img2dataset with pictures of 240 x 180 px and the rules of A.1 but the
CLIP score, which the corpus states; the seconds are those of the whole command, start and end included, and of a second
build of three times as many rows, so that both can be told apart. Memory is the largest resident set of any process of
a build whose rules are cheap: what grows with the rows is the engine's. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
PER_FILE = 5000
_POOL = 500  # pictures; each row's has other bytes behind its end


def pictures(side: int) -> list[bytes]:
    """JPEGs of `side` x three quarters of it, of blurred noise: about as many bytes per pixel as photographs."""
    draw = random.Random(0)
    encoded = []
    for _ in range(_POOL):
        noise = Image.frombytes("RGB", (24, 18), draw.randbytes(24 * 18 * 3))
        buffer = io.BytesIO()
        noise.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        encoded.append(buffer.getvalue())
    return encoded


def write(folder: pathlib.Path, rows: int, side: int) -> None:
    """Parquet shards with captions of 6 to 20 words; a tenth have HTML, and a tenth repeat an earlier caption."""
    words = [word for word in _TEXT.split() if word]
    pool = pictures(side)
    folder.mkdir()
    for first in range(0, rows, PER_FILE):
        draw = random.Random(first)
        numbers = range(first, min(rows, first + PER_FILE))
        captions = []
        for number in numbers:
            source = random.Random(number - 1 if number % 10 == 3 else number)
            caption = " ".join(source.choice(words) for _ in range(source.randrange(6, 20)))
            captions.append(f"<p>{caption} &amp; more</p>" if number % 10 == 7 else caption)
        columns = {
            "key": [f"{number:09d}" for number in numbers],
            "jpg": [pool[number % _POOL] + number.to_bytes(8, "big") for number in numbers],
            "caption": captions,
            "status": ["success"] * len(numbers),
            "similarity": [draw.uniform(0.2, 0.4) for _ in numbers],
        }
        pq.write_table(pa.table(columns), folder / f"{first // PER_FILE:05d}.parquet", row_group_size=500)


_TEXT = """a photograph of two children who play with a red kite on the green hills above the old stone bridge near the
river while a small brown dog watches the white boats that sail slowly under the evening sky of a quiet summer village
and the wooden house by the lake has blue windows large garden tall trees with yellow leaves fresh bread on its table"""


def build(folder: str, output: str, workers: str, rules: str) -> None:
    logging.disable(logging.WARNING)  # Beam's import warns about cloud clients that nothing here needs
    import dataclasses

    from benchmarks import hostile_rows
    from data_pipelines import beam
    from data_pipelines.build import run

    logging.disable(logging.NOTSET)
    job = hostile_rows.job(pathlib.Path(folder), pathlib.Path(output), bytes_per_shard=64 << 20)
    if rules == "cheap":
        job = dataclasses.replace(job, recipe=(hostile_rows.RECIPE[0], hostile_rows.OPENED))
    run.build(job, beam.options([], int(workers)), int(workers))


def measured(folder: pathlib.Path, output: pathlib.Path, workers: int, rules: str) -> dict[str, Any]:
    """Builds in a session of its own; seconds, and the peaks of the resident sets of its processes in MiB."""
    command = [sys.executable, "-m", "benchmarks.cleaning", "--build", str(folder), str(output), str(workers), rules]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ProcessLookupError, StopIteration):
                if int((path / "stat").read_text().rpartition(")")[2].split()[3]) == process.pid:
                    status = (path / "status").read_text().splitlines()
                    peak = next(line for line in status if line.startswith("VmHWM"))
                    peaks[int(path.name)] = int(peak.split()[1]) / 1024
        time.sleep(0.25)
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the build into {output} failed")
    manifest = json.loads((output / "manifest.json").read_text())
    driver = peaks.pop(process.pid)
    shutil.rmtree(output)
    return {
        "rows": manifest["rows"],
        "kept": manifest["kept"],
        "seconds": round(seconds, 1),
        "driver_mib": round(driver),
        "largest_worker_mib": round(max(peaks.values(), default=0)),
    }


def peer(python: str, folder: pathlib.Path) -> dict[str, Any]:
    """Seconds and kept rows of data-juicer."""
    script = pathlib.Path(__file__).with_name("cleaning_peer.py")
    with tempfile.NamedTemporaryFile() as result:
        command = [python, str(script), str(folder), result.name]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return json.loads(pathlib.Path(result.name).read_text())


def speed(folder: pathlib.Path, rows: int, peer_python: str) -> dict[str, Any]:
    """Pairs per second at 1 and 2 workers, and of the peer, from the difference of a small and a large build."""
    counts = {"small": rows, "large": 3 * rows}
    for name, count in counts.items():
        write(folder / name, count, 240)
    results: dict[str, Any] = {}
    builds = {"1 worker": (1, "all"), "2 workers": (2, "all"), "1 worker, no rules on texts": (1, "cheap")}
    for title, (workers, rules) in builds.items():
        both = {name: measured(folder / name, folder / "output", workers, rules) for name in counts}
        results[title] = {**both, "pairs_per_second": _rate(both, 2 * rows)}
    one, two = (results[title]["pairs_per_second"] for title in ("1 worker", "2 workers"))
    results |= {"two_workers_over_one": round(two / one, 2)}
    if peer_python:
        both = {name: peer(peer_python, folder / name) for name in counts}
        results["data-juicer"] = {**both, "pairs_per_second": _rate(both, 2 * rows)}
        results["ours_over_data_juicer"] = round(one / results["data-juicer"]["pairs_per_second"], 2)
    return results


def _rate(both: dict[str, dict[str, Any]], rows: int) -> float:
    return round(rows / (both["large"]["seconds"] - both["small"]["seconds"]), 1)


def memory(folder: pathlib.Path, rows: list[int]) -> dict[str, Any]:
    """Peaks of memory by the number of rows, with 2 workers."""
    results = {}
    for count in rows:
        write(folder / "corpus", count, 64)
        results[f"{count} rows"] = measured(folder / "corpus", folder / "output", 2, "cheap")
        shutil.rmtree(folder / "corpus")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed_rows", type=int, default=20_000, help="0: no speed is measured")
    parser.add_argument("--memory_rows", default="10000,100000,1000000", help="empty: no memory is measured")
    parser.add_argument("--peer_python", default="", help="an interpreter with data-juicer")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as made:
        if arguments.speed_rows:
            results["speed"] = speed(pathlib.Path(made), arguments.speed_rows, arguments.peer_python)
        if arguments.memory_rows:
            results["memory"] = memory(pathlib.Path(made), [int(text) for text in arguments.memory_rows.split(",")])
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]:
        build(*sys.argv[2:6])
    else:
        main()
