"""The twelve faults of `chaos`: each does one thing to a run that trains."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos_run import ROOT, Attempt, World, set_clock
from tests.support import faulty_gcs

# A clock that is set back makes JAX abort several processes (docs/processes.md).
_CLOCK_JUMPS = (-86_400, -3600, 3600, 86_400)  # seconds
_FILLER = "filler"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
      name: for the tables.
      strike: does it, and says to whom.
      ends: whether the attempt ends by it; None: it may. Otherwise it must go on.
      mend: what a user does afterwards; without it, the exit codes alone must say that the run is to be started again.
    """

    name: str
    strike: Callable[[Attempt, random.Random], str]
    ends: bool | None
    mend: Callable[[World], None] | None = None


def _signal(number: signal.Signals) -> Callable[[Attempt, random.Random], str]:
    def strike(attempt: Attempt, draw: random.Random) -> str:
        index = draw.randrange(attempt.count)
        attempt.processes[index].send_signal(number)
        return f"process {index} of {attempt.count}"

    return strike


def _fill_disk(attempt: Attempt, draw: random.Random) -> str:
    block = bytes(1 << 20)
    written = 0
    with (attempt.world.disk / _FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                written += file.write(block)
        except OSError:
            return f"{written >> 20} MiB written"


def _empty_disk(world: World) -> None:
    (world.disk / _FILLER).unlink(missing_ok=True)


def _finished(attempt: Attempt) -> list[Path]:
    folders = [path for path in (attempt.workdir / "checkpoints").iterdir() if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))


def _newest_arrays(attempt: Attempt) -> list[Path]:
    """The files of the newest finished checkpoint's arrays, largest first. The run is killed before.

    It goes on until it has two checkpoints: without another one, nothing could be continued.
    """
    while len(_finished(attempt)) < 2 and attempt.running():
        time.sleep(0.05)
    attempt.kill()
    attempt.wait(10)
    newest = _finished(attempt)[-1]
    files = [path for item in ("params", "optimizer") for path in (newest / item).rglob("d/*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def _flip(attempt: Attempt, draw: random.Random) -> str:
    file = draw.choice(_newest_arrays(attempt)[:4])
    contents = bytearray(file.read_bytes())
    offset = draw.randrange(len(contents))
    contents[offset] ^= 1 << draw.randrange(8)
    file.write_bytes(contents)
    return f"byte {offset} of {file.relative_to(attempt.workdir / 'checkpoints')}"


def _lose_shard(attempt: Attempt, draw: random.Random) -> str:
    file = draw.choice(_newest_arrays(attempt)[:4])
    file.unlink()
    return str(file.relative_to(attempt.workdir / "checkpoints"))


def _outage(kind: str, seconds: float) -> Callable[[Attempt, random.Random], str]:
    def strike(attempt: Attempt, draw: random.Random) -> str:
        faulty_gcs.outage(attempt.world.proxy, kind, seconds)
        return f"{seconds:g} s"

    return strike


def _jump(attempt: Attempt, draw: random.Random) -> str:
    assert attempt.world.clock is not None
    jump = draw.choice(_CLOCK_JUMPS)
    set_clock(attempt.world.clock, jump)
    return f"{jump:+} s"


def _second_run(attempt: Attempt, draw: random.Random) -> str:
    """Starts the same command again as one process; it must be refused."""
    command = [sys.executable, "-m", "qwenvl_jax.train", *attempt.world.command(attempt.workdir)]
    variables = attempt.world.environment() | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    del variables["JAX_CPU_COLLECTIVES_IMPLEMENTATION"]  # of several processes
    second = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    if second.returncode != 2 or "trains in" not in second.stderr:
        raise AssertionError(f"the second run was not refused ({second.returncode}): {second.stderr[-500:]}")
    return "refused with exit code 2"


def _kill_decoder(attempt: Attempt, draw: random.Random) -> str:
    decoders = attempt.decoders()
    if not decoders:
        raise AssertionError("the run has no decoding process")
    os.kill(draw.choice(decoders), signal.SIGKILL)
    return f"one of {len(decoders)}"


def make_faults(world: World, outage: float) -> list[Fault]:
    """The faults that this machine allows.

    Args:
      world: see there.
      outage: seconds for which the bucket fails.
    """
    faults = [
        Fault("SIGKILL", _signal(signal.SIGKILL), True),
        Fault("SIGTERM", _signal(signal.SIGTERM), True),
        Fault("SIGSTOP", _signal(signal.SIGSTOP), True),
        Fault("abort", _signal(signal.SIGABRT), True),
        Fault("full disk", _fill_disk, True, _empty_disk),
        Fault("flipped byte", _flip, True),
        Fault("lost shard", _lose_shard, True),
        Fault("bucket 503", _outage("503", outage), False),
        Fault("hung reader", _outage("hang", min(outage, 20.0)), False),
        Fault("clock jump", _jump, None),
        Fault("second run", _second_run, False),
        Fault("killed decoder", _kill_decoder, False),
    ]
    missing = {"full disk"} if not world.mounted else set()
    missing |= {"clock jump"} if world.clock is None else set()
    return [fault for fault in faults if fault.name not in missing]
