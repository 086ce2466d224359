"""Real processes that join over loopback, for tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

# Variables of launchers and clusters that this machine itself may have set.
FOREIGN = ("JAX_", "SLURM_", "OMPI_", "PMIX_", "TPU_", "MEGASCALE_", "GCE_", "KUBERNETES_", "JOB_", "MASTER_")
FOREIGN += ("RANK", "WORLD_SIZE", "LOCAL_RANK", "QWENVL_", "CLOUD_TPU")


class Ended(NamedTuple):
    """What a process left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(code: str, variables: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Starts Python on `code` with `variables` beside those of this machine that no launcher sets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | dict(variables)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextlib.contextmanager
def killed_at_the_end(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """No process outlives its test."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def run(code: str, variables: Sequence[Mapping[str, str]], *arguments: str, timeout: float = 120) -> list[Ended]:
    """Runs `code` once with each set of variables, all at the same time, until all have ended."""
    processes = [start(code, own, *arguments) for own in variables]
    with killed_at_the_end(processes):
        found = [process.communicate(timeout=timeout) for process in processes]
    return [Ended(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def joined(count: int, **variables: str) -> list[dict[str, str]]:
    """The variables of `count` processes that find one another by JAX's own names."""
    address = f"127.0.0.1:{free_port()}"
    return [
        variables | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        for index in range(count)
    ]
