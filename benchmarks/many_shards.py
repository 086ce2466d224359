"""A record folder of 346,000 shards: what opening it costs, and what reading from 10,000 shards at random costs.

    python benchmarks/many_shards.py --scratch=DIR [--shards=346000] [--processes=8] [--strangers=2000000]
        [--latency=0.05] [--touched=10000] [--records=12000] [--threads=16]

Opening: a separate process serves a bucket (`tests/support/many_objects.py`) with the metadata that `record_writer`
writes for so many shards; the shards themselves are computed. So many processes join, as a run's do, and open the
folder as a source, once as a record folder and once as a data set of TFDS. The store counts their requests.

Reading: so many threads read from so many shards on a disk (hard links to one file of so many records) in random
order: by `Shards` with the 1,024 file descriptors that a shell usually allows, by `Shards` with as many as the system
allows, and so by the peer, `ArrayRecordDataSource` of array_record, which Grain uses too. Each side is a process.
Prints one JSON object; exit code 1 if a record is wrong or a process fails.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIDES = ("shards_1024_descriptors", "shards", "peer")
RECORD_BYTES = 200


def main(argv: list[str] | None = None) -> None:
    """Runs both parts and prints the result, or one side of a part if `--side` names it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for shards and metadata")
    parser.add_argument("--shards", type=int, default=346_000, help="of the folder that is opened")
    parser.add_argument("--processes", type=int, default=8, help="that open it")
    parser.add_argument("--strangers", type=int, default=2_000_000, help="objects in it that no manifest lists")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer of the store")
    parser.add_argument("--touched", type=int, default=10_000, help="shards that are read from")
    parser.add_argument("--records", type=int, default=12_000, help="in each of those shards")
    parser.add_argument("--threads", type=int, default=16, help="that read")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)
    if arguments.side in ("records", "tfds"):
        open_folder(arguments.side)
    elif arguments.side:
        read_shards(arguments)
    else:
        arguments.scratch.mkdir(parents=True, exist_ok=True)
        print(json.dumps({"opening": opening(arguments), "reading": reading(arguments)}, indent=2))


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """The first part: seconds, requests and memory of each way to open the folder."""
    from tests.support import gcs_server, many_objects

    files = arguments.scratch / "laion" / "1.0.0"
    write_metadata(files, arguments.shards)
    result: dict[str, Any] = {"manifest_mib": round((files / "manifest.json").stat().st_size / 2**20, 1)}
    for side in ("records", "tfds"):
        options = {"folder": "laion/1.0.0", "strangers": arguments.strangers, "latency": arguments.latency}
        with many_objects.serve(files, **options) as url:
            ended = run_together(arguments, side, gcs_server.environment(url))
            requests = many_objects.requests(url)
        assert len({(one["records"], one["digest"]) for one in ended}) == 1, ended
        result[side] = {
            "seconds": max(one["seconds"] for one in ended),
            "requests": sum(requests.values()),
            "requests_by_kind": requests,
            "peak_mib_process_0": ended[0]["peak_mib"],
            "peak_mib_others": max((one["peak_mib"] for one in ended[1:]), default=None),
            "mib_before": ended[0]["mib_before"],
            "mib_after": [one["mib_after"] for one in ended[:2]],
        }
    return result


def write_metadata(folder: Path, count: int) -> None:
    """The manifest and the files of TFDS for so many shards, whose sizes vary as those of real ones; the first is real.

    TFDS writes no metadata for a folder without any shard, and a data set of TFDS shows its first record when opened.
    """
    from qwenvl_jax.data.record_format import MANIFEST, shard_name
    from qwenvl_jax.data.record_writer import Shard, write_manifest, write_shard
    from tests.data.record_samples import make_record

    (folder / MANIFEST).unlink(missing_ok=True)
    shards = [write_shard(folder, "laion", "train", 0, count, [make_record("caption", k) for k in range(100)])]
    draw = random.Random(0)
    for index in range(1, count):
        records = draw.randrange(3_900, 4_200)
        tallies = [{name: records} for name in ("laion", "caption", "en", "unknown")]
        file = shard_name("laion", "train", index, count)
        sha256 = hashlib.sha256(file.encode()).hexdigest()
        shards.append(Shard("train", file, records, records, records, records * 45_000, sha256, *tallies))
    write_manifest(folder, "laion", shards)


def run_together(arguments: argparse.Namespace, side: str, variables: dict[str, str]) -> list[dict[str, Any]]:
    """Runs the processes of an opening at the same time; returns what each of them printed."""
    from tests.runtime.processes import joined

    command = [sys.executable, __file__, f"--scratch={arguments.scratch}", f"--side={side}"]
    common = {**os.environ, **variables, "JAX_PLATFORMS": "cpu", "QWENVL_JOIN_SECONDS": "300"}
    processes = [
        subprocess.Popen(command, env={**common, **address}, stdout=subprocess.PIPE, text=True)
        for address in joined(arguments.processes)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a process that opens the folder has failed: {printed}")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def open_folder(side: str) -> None:
    """One process of an opening, from joining the others on."""
    from qwenvl_jax.config import SourceConfig
    from qwenvl_jax.data.readers.source import open_source
    from qwenvl_jax.runtime import distributed
    from tests.support.many_objects import BUCKET

    paths = {"records": f"gs://{BUCKET}/laion/1.0.0", "tfds": f"tfds:laion:1.0.0@gs://{BUCKET}"}
    distributed.initialize()
    distributed.gather(None)
    before = resident_mib()
    began = time.monotonic()
    source = open_source(SourceConfig("laion", "caption", paths[side], 1.0))
    seconds = time.monotonic() - began
    after = resident_mib()
    answer = {
        "seconds": round(seconds, 1),
        "records": len(source),
        "samples": source.samples,
        "digest": source.digest(),
        "mib_before": before,
        "mib_after": after,
        "peak_mib": peak_mib(),
    }
    distributed.gather(None)
    print(json.dumps(answer), flush=True)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The second part: memory, descriptors and seconds of both readers."""
    write_shards(arguments.scratch / "shards", arguments.touched, arguments.records)
    options = [f"--{name}={getattr(arguments, name)}" for name in ("scratch", "touched", "records", "threads")]
    result = {}
    for side in SIDES:
        command = [sys.executable, __file__, *options, f"--side={side}"]
        result[side] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    result["memory_to_peer"] = round(result["shards"]["grown_mib"] / max(result["peer"]["grown_mib"], 1), 2)
    result["speed_to_peer"] = round(result["shards"]["reads_per_second"] / result["peer"]["reads_per_second"], 2)
    return result


def shard_paths(folder: Path, count: int) -> list[str]:
    """The paths of the shards that are read."""
    return [f"{folder}/laion-train.array_record-{index:05d}-of-{count:05d}" for index in range(count)]


def write_shards(folder: Path, count: int, records: int) -> None:
    """One shard and hard links to it. Record i begins with its number."""
    from array_record.python import array_record_module

    paths = shard_paths(folder, count)
    folder.mkdir(parents=True, exist_ok=True)
    for former in folder.iterdir():
        former.unlink()
    writer = array_record_module.ArrayRecordWriter(paths[0], "group_size:1,zstd:1")
    draw = random.Random(0)
    for index in range(records):
        writer.write(f"{index}:".encode() + draw.randbytes(RECORD_BYTES))
    writer.close()
    for path in paths[1:]:
        os.link(paths[0], path)


def read_shards(arguments: argparse.Namespace) -> None:
    """One side of the second part: every shard is read from three times, in random order."""
    count, records = arguments.touched, arguments.records
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024 if arguments.side == SIDES[0] else most, most))
    paths = shard_paths(arguments.scratch / "shards", count)
    draw = random.Random(1)
    order = [shard * records + draw.randrange(records) for shard in list(range(count)) * 3]
    draw.shuffle(order)
    if arguments.side != "peer":
        from qwenvl_jax.data.readers.shards import Shards

        shards = Shards(arguments.scratch / "shards", [Path(path).name for path in paths], [records] * count)
        read = shards.__getitem__
    else:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        source = ArrayRecordDataSource(paths)
        read = source.__getitem__
    before = resident_mib()
    began = time.monotonic()
    most_descriptors = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.threads) as threads:
        for number, (index, payload) in enumerate(zip(order, threads.map(read, order), strict=True)):
            if payload.partition(b":")[0] != str(index % records).encode():
                raise SystemExit(f"record {index} is wrong")
            if number % 200 == 0:
                most_descriptors = max(most_descriptors, len(os.listdir("/proc/self/fd")))
    seconds = time.monotonic() - began
    answer = {
        "seconds": round(seconds, 1),
        "reads_per_second": round(len(order) / seconds),
        "descriptors": most_descriptors,
        "grown_mib": round(resident_mib() - before),
        "peak_mib": peak_mib(),
    }
    print(json.dumps(answer))


def resident_mib() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def peak_mib() -> int:
    """The most resident memory that this process has had."""
    status = Path("/proc/self/status").read_text()  # `getrusage` begins with the peak of the parent
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


if __name__ == "__main__":
    main()
