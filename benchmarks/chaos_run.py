"""The run that `chaos` disturbs: its disk, its bucket, and the processes of one attempt after another."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.support import faulty_gcs, gcs_server
from tests.support.ports import free_port

ROOT = Path(__file__).parents[1]
DEVICES = 4  # of all processes together
COUNTS = (1, 2, 4)  # of processes
SILENCE = 20  # seconds after which the other processes give a silent one up
_GRACE = 20.0  # seconds for the other processes of a run to end after the first one
_QUICK_COMPILATION = "--xla_backend_optimization_level=0"  # several processes on CPUs compile at every start
_POLL = 0.05
_STEP = re.compile(r"^step +(\d+)/.* ETA ", re.MULTILINE)
_CONTINUED = re.compile(r"^continuing .* after step (\d+) of", re.MULTILINE)


@dataclasses.dataclass
class World:
    """What a run needs and what may break under it.

    Attributes:
      disk: the folder of the runs; a file system of its own if `mounted`.
      mounted: whether `disk` can be filled without harm to others.
      logs: what the processes print.
      bucket: of the records, behind `proxy`.
      proxy: URL of the proxy, which makes outages.
      clock: the file with the offset of the wall clock; None if it cannot be changed here.
      steps, checkpoint_every: of the run.
      cache: of compiled programs.
    """

    disk: Path
    mounted: bool
    logs: Path
    bucket: str
    proxy: str
    clock: Path | None
    steps: int
    checkpoint_every: int
    cache: Path

    def environment(self) -> dict[str, str]:
        """The variables of every process."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "QWENVL_"))}
        variables |= gcs_server.environment(self.proxy)
        variables |= {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "QWENVL_SILENCE_SECONDS": str(SILENCE),
        }
        if self.clock:
            variables |= clock_variables(self.clock)
        return variables

    def command(self, workdir: Path) -> list[str]:
        """The trainer's arguments."""
        config = f"data={self.bucket}/data,steps={self.steps},every={self.checkpoint_every}"
        return [f"--config=benchmarks/chaos_config.py:{config}", f"--workdir={workdir}"]


class Attempt:
    """The processes of one start of the trainer.

    A single process joins itself, so that its collectives are those of several processes: gloo adds four numbers in
    another order than XLA's collectives within one process, and the bits would differ.

    Args:
      world: see there.
      workdir: of the run.
      count: number of processes.
      name: of the log files.
    """

    def __init__(self, world: World, workdir: Path, count: int, name: str):
        self.world = world
        self.workdir = workdir
        self.count = count
        self.started = time.monotonic()
        self.ended = self.started
        self.first_step: float | None = None  # seconds from the start
        self.killed = 0  # processes that did not end by themselves
        self._logs = [world.logs / f"{name}_process_{index}.log" for index in range(count)]
        address = f"127.0.0.1:{free_port()}"
        flags = f"--xla_force_host_platform_device_count={DEVICES // count} {_QUICK_COMPILATION}"
        variables = world.environment() | {"XLA_FLAGS": flags}
        if count > 1:
            variables |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
            command = [sys.executable, "-m", "qwenvl_jax.train", *world.command(workdir)]
        else:
            command = [sys.executable, "-m", "benchmarks.chaos_alone", address, *world.command(workdir)]
        self.processes = []
        for index, log in enumerate(self._logs):
            number = {"JAX_PROCESS_ID": str(index)} if count > 1 else {}
            with log.open("wb") as output:
                self.processes.append(_start(command, variables | number, output))
        self.resumed = -1  # the step that it continues from; -1 until it says so

    def step(self) -> int:
        """The last step that this attempt has logged, or the one that it continues from; -1 if it has not begun."""
        said = self._logs[0].read_text(errors="replace")
        if self.resumed < 0 and (match := _CONTINUED.search(said)):
            self.resumed = int(match[1])
        steps = _STEP.findall(said)
        if not steps:
            return self.resumed
        if self.first_step is None:
            self.first_step = time.monotonic() - self.started
            self.resumed = max(self.resumed, 0)
        return int(steps[-1])

    def said(self) -> str:
        """Everything that the processes have printed so far."""
        return "".join(log.read_text(errors="replace") for log in self._logs)

    def running(self) -> bool:
        """Whether all processes are there."""
        return self._left() == self.count

    def _left(self) -> int:
        return sum(process.poll() is None for process in self.processes)

    def wait_for_step(self, step: int, limit: float) -> bool:
        """Waits until `step` is logged; False if a process ends or the time runs out before that."""
        deadline = time.monotonic() + limit
        while self.step() < step and self.running() and time.monotonic() < deadline:
            time.sleep(_POLL)
        return self.step() >= step

    def wait(self, limit: float) -> list[int]:
        """The exit codes of all processes as a shell reports them.

        As a scheduler does, it kills those that are still there after `limit` s, or some time after the first end.
        """
        deadline = time.monotonic() + limit
        while (left := self._left()) and time.monotonic() < deadline:
            if left < self.count:
                deadline = min(deadline, time.monotonic() + _GRACE)
            self.step()
            time.sleep(_POLL)
        self.ended = time.monotonic()
        self.killed = left
        self.kill()
        codes = [process.wait() for process in self.processes]
        return [code if code >= 0 else 128 - code for code in codes]

    def kill(self) -> None:
        """Kills what still runs, with its decoders."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def decoders(self) -> list[int]:
        """The processes that decode pictures."""
        decoders = []
        parents = {process.pid for process in self.processes}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in parents and b"images.worker" in (path / "cmdline").read_bytes():
                    decoders.append(int(path.name))
        return sorted(decoders)


def _start(command: list[str], variables: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


@contextlib.contextmanager
def make_world(scratch: Path, steps: int, checkpoint_every: int) -> Iterator[World]:
    """Everything that a chaos run needs: records in a bucket behind a proxy, a disk, a clock."""
    with contextlib.ExitStack() as stack:
        logs = scratch / "logs"
        logs.mkdir(parents=True)
        disk = scratch / "disk"
        disk.mkdir()
        mounted = _mount(disk)
        if mounted:
            stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
        upstream = stack.enter_context(gcs_server.serve())
        bucket = gcs_server.make_bucket(upstream, "chaos")
        _make_records(scratch / "data", bucket, upstream)
        proxy = stack.enter_context(faulty_gcs.faulty(upstream, rate=0))
        yield World(
            disk=disk,
            mounted=mounted,
            logs=logs,
            bucket=bucket,
            proxy=proxy,
            clock=make_clock(scratch),
            steps=steps,
            checkpoint_every=checkpoint_every,
            cache=scratch / "cache",
        )


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def _make_records(folder: Path, bucket: str, url: str) -> None:
    code = (
        "import sys, pathlib; from qwenvl_jax.runtime import storage; from tests.support import tiny_run;"
        "root = tiny_run.write_data(pathlib.Path(sys.argv[1]));"
        "[storage.write_bytes(f'{sys.argv[2]}/data/{path.relative_to(root)}', path.read_bytes())"
        " for path in sorted(root.rglob('*')) if path.is_file()]"
    )
    environment = os.environ | gcs_server.environment(url) | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, str(folder), bucket], cwd=ROOT, env=environment, check=True)


def make_clock(scratch: Path) -> Path | None:
    """The file that moves the wall clock of the processes with `clock_variables`; None without a compiler."""
    source, clock = Path(__file__).with_name("wall_clock.c"), scratch / "clock.offset"
    clock.write_bytes(bytes(8))
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(clock.with_suffix(".so")), str(source), "-ldl"]
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True).returncode == 0:
            return clock
    return None


def clock_variables(clock: Path) -> dict[str, str]:
    """What makes a process obey the file of `make_clock`."""
    return {"CHAOS_CLOCK": str(clock), "LD_PRELOAD": str(clock.with_suffix(".so"))}


def set_clock(clock: Path, seconds: int) -> None:
    """Moves the wall clock by so many seconds from the true time."""
    with clock.open("r+b") as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))
