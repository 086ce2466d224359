"""Damaged inputs of every kind through the readers that a person's files go through: nothing but a sentence or a count.

Usage: python benchmarks/mutated_inputs.py [--cases=20000] [--seed=0] [--kind=NAME] [--only=N] [--processes=2]

Case n of a seed is always the same damage: `--only=n` repeats it and shows the traceback. Cases run in processes; one
that ends, or gives no answer for DEADLINE seconds, is replaced and its case noted. Fails if an exception other than a
UserError came out, a process hung or died, or the memory of one has grown between its first and its last tenth.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
DEADLINE = 60.0  # seconds of one case, on a machine that does other things too
GROWTH = 96 << 20  # bytes between the first and the last tenth of the cases of a process
WARM = 40  # cases at least before memory is looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="")
    parser.add_argument("--only", type=int, default=-1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    elif options.only >= 0:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_case(targets_in(folder), options, options.only), indent=1))
    else:
        sys.exit(supervise(options))


def targets_in(folder: str) -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from mutation_targets import Targets

    return Targets(pathlib.Path(folder))


def run_case(targets: Any, options: argparse.Namespace, case: int) -> dict[str, Any]:
    """One damaged input, and what came of it."""
    from qwenvl_jax.runtime.errors import StorageError, UserError

    rng = random.Random(f"{options.seed}/{case}")
    kinds = [options.kind] if options.kind else list(targets.kinds)
    kind = kinds[case % len(kinds)]
    try:
        outcome, detail = targets.kinds[kind](rng), ""
    except (StorageError, UserError) as error:
        outcome, detail = "refused", str(error)
        if "\n" in detail.strip():
            outcome = "wrong"
            detail = f"a message of several lines: {detail}"
    except BaseException:
        outcome, detail = "wrong", traceback.format_exc()
    return {"case": case, "kind": kind, "outcome": outcome, "detail": detail[-1500:] if outcome == "wrong" else ""}


def memory() -> int:
    """Resident bytes of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(options: argparse.Namespace) -> None:
    """Runs the cases FIRST, FIRST + STEP, .. and writes a line for each."""
    first, step = map(int, options.worker.split(","))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    with tempfile.TemporaryDirectory() as folder:
        targets = targets_in(folder)
        print(json.dumps({"ready": True}), file=answers)
        for case in range(first, options.cases, step):
            print(json.dumps(run_case(targets, options, case) | {"memory": memory()}), file=answers)


class Worker:
    """A process that runs every `step`-th case.

    Attributes:
      case: that it is at.
      memory: of the process after each case.
    """

    def __init__(self, options: argparse.Namespace, first: int, step: int):
        self.case = first
        self.step = step
        self.memory: list[int] = []
        command = [sys.executable, __file__, f"--worker={first},{step}"]
        command += [f"--{name}={getattr(options, name)}" for name in ("cases", "seed", "kind")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, env=environment, cwd=ROOT, text=True
        )
        self.since = time.monotonic() + 180  # for its start

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-1500:].decode("utf-8", "replace")

    def grown(self) -> int:
        tenth = len(self.memory) // 10
        if len(self.memory) < 3 * WARM:
            return 0
        return min(self.memory[-tenth:]) - max(self.memory[WARM : WARM + tenth])


def supervise(options: argparse.Namespace) -> int:
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong: list[dict[str, Any]] = []
    finished: list[Worker] = []
    selector = selectors.DefaultSelector()
    start = time.monotonic()

    def begin(first: int, step: int) -> None:
        if first < options.cases:
            worker = Worker(options, first, step)
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def end(worker: Worker, why: str) -> None:
        selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        worker.process.kill()
        worker.process.wait()
        finished.append(worker)
        if worker.case < options.cases:
            wrong.append({"case": worker.case, "kind": "?", "outcome": why, "detail": worker.last_words()})
            begin(worker.case + worker.step, worker.step)

    for first in range(options.processes):
        begin(first, options.processes)
    while selector.get_map():
        for key, _ in selector.select(timeout=1):
            line = key.data.process.stdout.readline()
            if not line:
                end(key.data, "the process ended")
                continue
            answer = json.loads(line)
            key.data.since = time.monotonic()
            if "ready" in answer:
                continue
            key.data.case = answer["case"] + key.data.step
            key.data.memory.append(answer["memory"])
            outcomes[answer["kind"]][answer["outcome"]] += 1
            if answer["outcome"] == "wrong":
                wrong.append(answer)
        for key in list(selector.get_map().values()):
            if time.monotonic() - key.data.since > DEADLINE:
                end(key.data, f"no answer in {DEADLINE:g} seconds")
    return report(options, outcomes, wrong, finished, time.monotonic() - start)


def report(
    options: argparse.Namespace,
    outcomes: dict[str, collections.Counter[str]],
    wrong: list[dict[str, Any]],
    finished: list[Worker],
    seconds: float,
) -> int:
    seen: collections.Counter[str] = collections.Counter()
    for answer in sorted(wrong, key=lambda answer: answer["case"]):
        last = answer["detail"].strip().rsplit("\n", 1)[-1][:60]
        seen[last] += 1
        if seen[last] <= 3:
            print(f"--- case {answer['case']} of seed {options.seed}, {answer['kind']}: {answer['outcome']}")
            print(answer["detail"])
    print(f"{'kind':16} {'read':>7} {'counted':>8} {'refused':>8} {'wrong':>6}")
    for kind, counts in sorted(outcomes.items()):
        print(f"{kind:16} {counts['read']:7} {counts['counted']:8} {counts['refused']:8} {counts['wrong']:6}")
    total = sum(sum(counts.values()) for counts in outcomes.values())
    grown = max((worker.grown() for worker in finished), default=0)
    largest = max((max(worker.memory) for worker in finished if worker.memory), default=0)
    print(
        f"{total} cases of seed {options.seed} in {seconds:.0f} s: {len(wrong)} wrong; memory grew by "
        f"{grown / 2**20:.0f} MiB, at most {largest / 2**20:.0f} MiB"
    )
    return int(bool(wrong) or grown > GROWTH)


if __name__ == "__main__":
    main()
