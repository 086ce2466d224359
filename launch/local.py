"""Processes on this machine that find one another as pods do, and are started again as a JobSet would.

python -m launch.local --processes=2 [--devices=4] [--restarts=20] -- python -m qwenvl_jax.train --config=..
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from absl import flags

from launch.command import Command
from launch.execution import runnable
from launch.job import Job
from launch.path import LaunchPath
from qwenvl_jax.runtime import commandline, exit_codes
from qwenvl_jax.runtime.child import end_with_parent
from qwenvl_jax.runtime.errors import UserError

_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Processes on this machine, for local.", lower_bound=1, upper_bound=1024
)
_DEVICES = flags.DEFINE_integer(
    "devices", 0, "CPU devices per process, for local; 0: the GPUs of this machine, or one.", 0, 1024
)

# How long the others may run on after one process has ended, and all of them after SIGTERM.
GRACE_SECONDS = 300.0
_LONGEST_PAUSE = 60.0  # seconds between two starts


def check(job: Job) -> None:
    """Accepts every job."""
    del job


def run(job: Job) -> list[Command]:
    """Runs the stage on this machine until it ends, for good or after too many restarts."""
    arguments = (
        *("python", "-m", "launch.local", f"--processes={_PROCESSES.value}", f"--devices={_DEVICES.value}"),
        *(f"--restarts={job.restarts}", "--", *job.command),
    )
    noun = "process" if _PROCESSES.value == 1 else "processes"
    why = f"Run {_PROCESSES.value} {noun} here; start again after retryable exit codes, {job.restarts} times at most."
    return [Command(arguments, why, environment=job.environment)]


def variables_of(index: int, count: int, port: int, devices: int, gpus: int) -> dict[str, str]:
    """The variables by which process `index` of `count` finds the others and its devices.

    Args:
      index: from 0 on.
      count: of processes.
      port: of this machine, on which process 0 listens.
      devices: CPU devices per process; 0 for whatever the machine has.
      gpus: of this machine, which are divided among the processes if `devices` is 0.
    """
    variables = {"JAX_NUM_PROCESSES": str(count), "PYTHONUNBUFFERED": "1"}
    if count > 1:
        variables |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": str(index)}
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        variables |= {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    elif gpus and count > 1:
        if gpus % count:
            raise UserError(f"{gpus} GPUs cannot be divided among {count} processes; change --processes")
        share = gpus // count
        variables["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(index * share, (index + 1) * share)))
    elif count > 1:
        variables["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    return variables


class Group:
    """Processes that run together: they are started, signalled and ended as one.

    Args:
      command: the program and its arguments, the same for all.
      variables: of each process, in addition to those of this one.
    """

    def __init__(self, command: Sequence[str], variables: Sequence[Mapping[str, str]]):
        self._threads: list[threading.Thread] = []
        self._processes: list[subprocess.Popen[str]] = []
        for index, of_one in enumerate(variables):
            try:
                process = subprocess.Popen(
                    runnable(command),
                    env={**os.environ, **of_one},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C of the terminal reaches this program alone, which passes it on
                    preexec_fn=functools.partial(end_with_parent, os.getpid()),
                )
            except OSError as error:
                self.signal(signal.SIGKILL)
                raise UserError(f"{command[0]} cannot be started ({error.strerror}); check the command") from None
            self._processes.append(process)
            prefix = f"[{index}] " if len(variables) > 1 else ""
            assert process.stdout is not None
            thread = threading.Thread(target=_print_lines, args=(process.stdout, prefix), daemon=True)
            thread.start()
            self._threads.append(thread)

    def signal(self, number: int) -> None:
        """Sends a signal to every process that still runs."""
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def wait(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Waits until all have ended; the exit code of the group.

        After the first one has ended with an error, the others get `grace_seconds` to follow; then they are killed.
        """
        deadline = None
        while any(process.poll() is None for process in self._processes):
            if deadline is None and any(process.returncode for process in self._processes):
                deadline = time.monotonic() + grace_seconds
            if deadline is not None and time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            time.sleep(0.05)
        for thread in self._threads:
            thread.join(timeout=5)
        return code_of_group([process.returncode for process in self._processes])


def code_of_group(codes: Sequence[int]) -> int:
    """One exit code for several, as Python gives them: a permanent error counts before a retryable one, 0 last.

    Of retryable codes RETRY counts last, because it says that another process was lost.
    """
    as_shell = [128 - code if code < 0 else code for code in codes]
    permanent = [code for code in as_shell if code and not exit_codes.retryable(code)]
    retryable = sorted((code for code in as_shell if code and exit_codes.retryable(code)), key=exit_codes.RETRY.__eq__)
    return next(iter([*permanent, *retryable]), exit_codes.FINISHED)


def supervise(command: Sequence[str], processes: int, devices: int, restarts: int) -> int:
    """Runs the group until it ends for good; its exit code.

    SIGTERM and Ctrl-C are passed on to all processes; then the group is not started again.
    """
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    received: list[int] = []
    group: Group | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if group:
            group.signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = exit_codes.FINISHED
        for attempt in range(restarts + 1):
            port = _free_port()
            variables = [variables_of(index, processes, port, devices, gpus) for index in range(processes)]
            if received:
                return 128 + received[0]
            group = Group(command, variables)
            for number in received:  # while the processes were started
                group.signal(number)
            code = group.wait()
            if code == exit_codes.FINISHED or received or not exit_codes.retryable(code):
                break
            if attempt < restarts:
                print(f"the run ended with exit code {code}; start {attempt + 2} of {restarts + 1}", flush=True)
                _pause(min(2.0 ** min(attempt, 10), _LONGEST_PAUSE), received)
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pause(seconds: float, received: Sequence[int]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not received:
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _print_lines(lines: IO[str], prefix: str) -> None:
    for line in lines:
        sys.stdout.write(prefix + line if line.endswith("\n") else f"{prefix}{line}\n")
        sys.stdout.flush()


PATH = LaunchPath(
    name="local",
    summary="processes on this machine, with CPU devices or its GPUs",
    builders={"run": run},
    check=check,
    zoned=False,
    replaces=True,
)


def main(*command: str) -> None:
    """Runs the command of the command line, that after `--`."""
    if not command:
        raise UserError("give the command after --, e.g. python -m launch.local --processes=2 -- python train.py")
    sys.exit(supervise(command, _PROCESSES.value, _DEVICES.value, flags.FLAGS.restarts))


if __name__ == "__main__":
    flags.DEFINE_integer("restarts", 20, "How often the command is started again.", lower_bound=0)
    commandline.run(main, positional=10**6, needs_config=False)
