"""Kills a build of 100,000 hostile rows 20 times and compares the bytes with those of an unbroken one.

Usage: python -m benchmarks.pipeline_kills [--rows=100000] [--kills=20] [--workers=2] [--pin]      (20 minutes)

Each kill is a SIGKILL at a random moment: of the process that runs the pipeline, of one of its workers, or of all. The
same command is then started again. If a build comes to its end, its bytes are compared and the next one begins. The
counts per rule are compared with `pipeline_kills.json`, which `--pin` writes; every row must be counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PINNED = pathlib.Path(__file__).with_suffix(".json")


def bytes_of(folder: pathlib.Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(folder: pathlib.Path, output: pathlib.Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.pipeline_kills", "--build", str(folder), str(output), str(workers)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def build(folder: str, output: str, workers: str) -> None:
    logging.disable(logging.WARNING)  # Beam's import warns about cloud clients that nothing here needs
    from benchmarks import hostile_rows
    from data_pipelines import beam
    from data_pipelines.build import run
    from qwenvl_jax.runtime.errors import exit_on_user_error

    logging.disable(logging.NOTSET)
    with exit_on_user_error():
        job = hostile_rows.job(pathlib.Path(folder), pathlib.Path(output))
        run.build(job, beam.options([], int(workers)), int(workers))


def processes_of(session: int) -> list[int]:
    """The processes of a session, the leader first."""
    members = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ProcessLookupError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                members.append(int(path.name))
    return sorted(members, key=lambda process: (process != session, process))


def is_worker(process: int) -> bool:
    """Whether it is one of Beam's Python processes, not the shell that started it."""
    with contextlib.suppress(OSError):
        command = pathlib.Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return not command[0].endswith(b"/sh") and any(b"sdk_worker" in word for word in command)
    return False


def kill(process: subprocess.Popen[bytes], draw: random.Random) -> str:
    """Kills the leader, one worker, or all processes of a build; says which."""
    members = processes_of(process.pid)
    workers = [number for number in members if is_worker(number)]
    kind = draw.choice(["driver", "worker", "all"]) if workers else "driver"
    chosen = {"driver": [process.pid], "worker": [draw.choice(workers or members)], "all": members}[kind]
    for number in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()
    return kind


def timed(folder: pathlib.Path, output: pathlib.Path, workers: int) -> float:
    started = time.monotonic()
    if start(folder, output, workers).wait():
        raise SystemExit(f"the unbroken build into {output} failed")
    return time.monotonic() - started


def check_counts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Every row is counted once; the counts in the form in which they are pinned."""
    dropped = {each["rule"]: each["dropped"] for each in manifest["rules"]}
    total = manifest["failed"]["rows"] + manifest["kept"] + sum(sum(each.values()) for each in dropped.values())
    assert total == manifest["rows"], f"{total} rows are counted of {manifest['rows']}"
    assert manifest["tasks"]["caption"]["records"] == manifest["kept"]
    return {"rows": manifest["rows"], "failed": manifest["failed"], "dropped": dropped, "kept": manifest["kept"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pin", action="store_true", help="write the counts instead of comparing them")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as made:
        folder = pathlib.Path(made)
        rows = [sys.executable, "-m", "benchmarks.hostile_rows", str(folder / "corpus"), str(arguments.rows)]
        subprocess.run(rows, cwd=ROOT, check=True)
        whole = timed(folder / "corpus", folder / "whole", arguments.workers)
        expected = bytes_of(folder / "whole")
        counts = check_counts(json.loads((folder / "whole" / "manifest.json").read_text()))
        print(f"unbroken: {whole:.0f} s, {len(expected)} files, {json.dumps(counts)}", flush=True)
        kills = 0
        finished = 0
        while kills < arguments.kills:
            output = folder / f"killed-{finished}"
            process = start(folder / "corpus", output, arguments.workers)
            delay = draw.uniform(0.5, max(15.0, whole * 0.15))
            try:
                code = process.wait(delay)
                assert code == 0, f"a build ended with {code}"
            except subprocess.TimeoutExpired:
                kills += 1
                print(f"kill {kills}: {kill(process, draw)} after {delay:.1f} s", flush=True)
                continue
            finished += 1
            assert bytes_of(output) == expected, f"the bytes of {output} differ"
        timed(folder / "corpus", folder / f"killed-{finished}", arguments.workers)
        assert bytes_of(folder / f"killed-{finished}") == expected, "the bytes differ"
        print(f"{kills} kills, {finished + 1} builds finished after them, all with the bytes of the unbroken one")
    if arguments.pin:
        PINNED.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")
    elif arguments.rows == 100_000:
        assert counts == json.loads(PINNED.read_text()), f"the counts differ from {PINNED}"
        print(f"the counts are those of {PINNED.name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]:
        build(*sys.argv[2:5])
    else:
        main()
