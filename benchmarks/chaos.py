"""Disturbs one training run again and again, and compares its end with that of an unbroken one, to the bit.

    python -m benchmarks.chaos [--faults=50] [--seed=0] [--only=SIGKILL,abort] [--json=FILE] [--scratch=DIR]

The run trains the tiny model on four devices, which one, two or four processes share; after every end it is
continued by another number of processes. Its records are in a bucket (a server on the loopback, behind a proxy that can
fail), its folder is on a small disk. The faults come in shuffled rounds of all kinds, each at a random step:
SIGKILL, SIGTERM, SIGSTOP or SIGABRT of one process; a full disk; a flipped byte in the newest checkpoint, or one of
its files lost, after all were killed; a bucket that answers 503, or not at all; a jump of the wall clock; a second
run on the same folder; a killed decoder. The script does no more than a scheduler: if a process still hangs
`--patience` seconds after its run should have ended, it is killed, and the table says so.

Prints a table: of the faults that end an attempt, the seconds from the fault to the end of the last process; of the
others, the seconds to two more steps. The exit code is 0 if the run was disturbed as often as wanted and all bits are
those of the unbroken run. Times depend on the machine; the unbroken
run, which the goodput is compared with, is made just before on the same machine.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from benchmarks.chaos_faults import Fault, make_faults
from benchmarks.chaos_run import COUNTS, Attempt, World, make_world
from qwenvl_jax.runtime.exit_codes import retryable
from qwenvl_jax.training.goodput import read_account
from tests.checkpoint.saved_run import last_state, lines

_START_LIMIT = 600.0  # seconds for import, compilation and the first steps
_UNPLANNED = 10  # ends without a fault; gloo, for example, waits 30 s for a process that a busy machine has not run


def unbroken(world: World, workdir: Path) -> float:
    """Trains without a fault on two processes; the seconds per step from the first logged step to the last."""
    attempt = Attempt(world, workdir, 2, "unbroken")
    codes = attempt.wait(3600 + world.steps * 5)
    if codes != [0, 0] or attempt.first_step is None:
        raise SystemExit(f"the unbroken run ended with {codes}:\n{attempt.said()[-3000:]}")
    return (attempt.ended - attempt.started - attempt.first_step) / world.steps


def rounds(faults: Sequence[Fault], draw: random.Random) -> Any:
    """Endless faults: every kind once in each round."""
    while True:
        yield from draw.sample(faults, len(faults))


class Chaos:
    """The disturbed run: attempts, faults, and what came of them.

    Args:
      world: see there.
      workdir: of the run.
      seed: of kinds, moments and victims.
      patience: seconds after which a process that hangs is killed.
    """

    def __init__(self, world: World, workdir: Path, seed: int, patience: float):
        self.world = world
        self.workdir = workdir
        self.draw = random.Random(seed)
        self.patience = patience
        self.events: list[dict[str, Any]] = []
        self.first_steps: dict[int, float] = {}  # seconds, by the number of process 0 in the system
        self.lost: list[int] = []
        self.unplanned = 0
        self._attempts = 0
        self._began = time.monotonic()
        self.attempt = self._start(self.draw.choice(COUNTS))

    def _start(self, count: int) -> Attempt:
        self._attempts += 1
        return Attempt(self.world, self.workdir, count, f"attempt_{self._attempts:03}")

    def ended(self, mend: Callable[[World], None] | None = None) -> list[int]:
        """Waits for the end of an attempt and continues with another number of processes, if its exit codes say so.

        Args:
          mend: what a user does before, if they do not.

        Returns:
          The exit codes.
        """
        before = self.attempt
        codes = before.wait(self.patience)
        reached = before.step()
        self._note_first_step()
        if mend:
            mend(self.world)
        elif not all(code == 0 or retryable(code) for code in codes):
            self._fail(f"exit codes {codes} say that the run must not be started again")
        self.attempt = self._start(self.draw.choice([count for count in COUNTS if count != before.count]))
        if self.attempt.wait_for_step(0, _START_LIMIT):  # otherwise it has ended as well
            self.lost.append(max(0, reached - self.attempt.resumed))
        return codes

    def wait_for(self, step: int) -> None:
        """Waits for a step; an attempt that ends before, because this machine is slow, is continued."""
        while not self.attempt.wait_for_step(step, _START_LIMIT):
            if self.attempt.running():
                self._fail(f"step {step} does not come")
            self.unplanned += 1
            print(f"ended without a fault: {self.ended()}", flush=True)
            if self.unplanned > _UNPLANNED:
                self._fail("too many ends without a fault")

    def strike(self, fault: Fault) -> bool:
        """Waits for the moment, strikes and sees what happens; False if the run is at its end."""
        every = self.world.checkpoint_every
        self.wait_for(max(self.attempt.resumed, 0) + 1)
        moment = max(self.attempt.step(), every * 2) + self.draw.randint(1, 2 * every)
        if moment >= self.world.steps - 2 * every:
            return False
        self.wait_for(moment)
        attempt = self.attempt
        began = time.monotonic()
        event = {"fault": fault.name, "processes": attempt.count, "step": attempt.step()}
        event["victim"] = fault.strike(attempt, self.draw)
        self.events.append(event)
        went_on = not fault.ends and attempt.wait_for_step(attempt.step() + 2, _START_LIMIT)
        event["seconds"] = round(time.monotonic() - began, 1)
        if fault.ends is False and not went_on:
            self._fail(f"the run did not go on after {fault.name}")
        if not went_on:
            known = len(self.lost)
            event["codes"] = self.ended(fault.mend)
            event["killed by us"] = attempt.killed
            event["lost"] = sum(self.lost[known:])
            event["seconds"] = round(attempt.ended - began, 1)
        print(json.dumps(event), flush=True)
        return True

    def finish(self) -> float:
        """Waits for the end of the run; the seconds of all attempts together."""
        self.wait_for(self.world.steps)
        codes = self.attempt.wait(_START_LIMIT)
        self._note_first_step()
        if set(codes) != {0}:
            self._fail(f"the run ended with {codes}")
        return time.monotonic() - self._began

    def _note_first_step(self) -> None:
        if self.attempt.first_step is not None:
            self.first_steps[self.attempt.processes[0].pid] = self.attempt.first_step

    def _fail(self, why: str) -> None:
        self.attempt.kill()
        raise SystemExit(f"{why} (attempt {self._attempts}, {self.events[-1:]}):\n{self.attempt.said()[-4000:]}")


def same(one: Path, other: Path, step: int) -> dict[str, Any]:
    """How many arrays of two runs differ in a bit, and whether their metrics do."""
    pairs = list(zip(last_state(one, step), last_state(other, step), strict=True))
    differing = sum(a.dtype != b.dtype or a.tobytes() != b.tobytes() for a, b in pairs)
    return {"arrays": len(pairs), "arrays that differ": differing, "same metrics": lines(one) == lines(other)}


def starts_without_waiting_for_the_compiler(chaos: Chaos) -> list[float]:
    """Seconds to the first step of every start, less those in which the loop waits for the compiler, by its ledger."""
    starts = read_account(epath.Path(chaos.workdir)).starts
    compiled = {
        start.facts["pid"]: sum(interval.seconds.get("compilation", 0.0) for interval in start.intervals)
        for start in starts
    }
    return [seconds - compiled.get(pid, 0.0) for pid, seconds in chaos.first_steps.items()]


def report(chaos: Chaos, seconds: float, per_step: float) -> dict[str, Any]:
    """The figures of a run, and a table of them on the terminal."""
    world = chaos.world
    print(
        f"\n{'fault':15} times  ended the run  processes we killed  steps lost (median, worst)  seconds (median, worst)"
    )
    by_kind = collections.defaultdict(list)
    for event in chaos.events:
        by_kind[event["fault"]].append(event)
    for name, events in by_kind.items():
        lost = [event["lost"] for event in events if "lost" in event]
        lost_text = f"{statistics.median(lost):g}, {max(lost)}" if lost else "-"
        ends = sum("codes" in event for event in events)
        killed = sum(event.get("killed by us", 0) for event in events)
        seconds_of_kind = [event["seconds"] for event in events]
        seconds_text = f"{statistics.median(seconds_of_kind):.1f}, {max(seconds_of_kind):.1f}"
        print(f"{name:15} {len(events):5}  {ends:13}  {killed:12}  {lost_text:>26}  {seconds_text:>23}")
    starts = list(chaos.first_steps.values())
    others = starts_without_waiting_for_the_compiler(chaos)
    figures = {
        "faults": len(chaos.events),
        "kinds": len(by_kind),
        "steps": world.steps,
        "checkpoint every": world.checkpoint_every,
        "restarts": len(chaos.lost),
        "ends without a fault": chaos.unplanned,
        "steps lost, median": statistics.median(chaos.lost) if chaos.lost else 0,
        "steps lost, worst": max(chaos.lost, default=0),
        "seconds to the first step, median": round(statistics.median(starts), 1),
        "seconds to the first step, worst": round(max(starts), 1),
        "the same beyond compilation, median": round(statistics.median(others), 1),
        "the same beyond compilation, worst": round(max(others), 1),
        "the same beyond compilation, every start": [round(seconds, 1) for seconds in others],
        "seconds": round(seconds),
        "seconds per step, unbroken": round(per_step, 3),
        "goodput": round(per_step * world.steps / seconds, 3),
    }
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the unbroken run and the disturbed one, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of faults, with commas")
    parser.add_argument("--steps", type=int, help="of the run; by default enough for all faults")
    parser.add_argument("--checkpoint_every", type=int, default=5)
    parser.add_argument("--outage", type=float, default=25.0, help="seconds for which the bucket answers 503")
    parser.add_argument("--patience", type=float, default=100.0, help="seconds for a run to end by itself")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--scratch", type=Path, help="an empty folder that is kept; default: a temporary one")
    arguments = parser.parse_args(argv)
    every = arguments.checkpoint_every
    steps = arguments.steps or every * (8 + 2 * arguments.faults)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (arguments.scratch or Path(temporary)).absolute()
        with make_world(scratch, steps, every) as world:
            faults = make_faults(world, arguments.outage)
            chosen = arguments.only.split(",") if arguments.only else [fault.name for fault in faults]
            faults = [fault for fault in faults if fault.name in chosen]
            per_step = unbroken(world, world.disk / "unbroken")
            print(f"unbroken: {steps} steps, {per_step:.2f} s each", flush=True)
            chaos = Chaos(world, world.disk / "disturbed", arguments.seed, arguments.patience)
            try:
                for fault, _ in zip(rounds(faults, chaos.draw), range(arguments.faults), strict=False):
                    if not chaos.strike(fault):
                        break
                seconds = chaos.finish()
            finally:
                chaos.attempt.kill()
            figures = report(chaos, seconds, per_step)
            figures |= same(world.disk / "unbroken", world.disk / "disturbed", steps)
            figures["events"] = chaos.events
    print(json.dumps({name: value for name, value in figures.items() if name != "events"}, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    same_bits = not figures["arrays that differ"] and figures["same metrics"]
    sys.exit(0 if same_bits and figures["faults"] == arguments.faults else 1)


if __name__ == "__main__":
    main()
