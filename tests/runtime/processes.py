"""Real processes that join over loopback, for tests.

One process imports JAX and forks all others, so that a test of three processes costs little more than one of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]

# Variables of launchers and clusters that this machine itself may have set.
FOREIGN: tuple[str, ...] = (
    "JAX_",
    "SLURM_",
    "OMPI_",
    "PMIX_",
    "PMI_",
    "TPU_",
    "MEGASCALE_",
    "GCE_",
    "KUBERNETES_",
    "JOB_",
    "MASTER_",
)
FOREIGN += ("RANK", "WORLD_SIZE", "LOCAL_", "TORCHELASTIC_", "QWENVL_", "CLOUD_TPU", "XLA_")
FOREIGN += ("NO_PROXY", "no_proxy")  # of the object store of other tests; JAX warns of them

# Forks a child for every line it reads. A child writes `out` and `err` into its folder, its end puts `code` there.
PARENT = """
import json, os, select, sys
import jax, jax.numpy, jax.experimental.multihost_utils, orbax.checkpoint
from qwenvl_jax.runtime import distributed
os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # set by JAX where it finds no TPU on the bus
folders = {}
while True:
    for child in list(folders):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            path = f"{folders.pop(child)}/code"
            with open(path + ".part", "w") as file:
                file.write(str(os.waitstatus_to_exitcode(status)))
            os.rename(path + ".part", path)
    if not select.select([sys.stdin], [], [], 0.02)[0]:
        continue
    if not (line := sys.stdin.readline()):
        break
    job = json.loads(line)
    child = os.fork()
    if child:
        folders[child] = job["folder"]
        print(child, flush=True)
        continue
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{job['folder']}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(job["variables"])
    sys.argv = ["test", *job["arguments"]]
    exec(compile(job["code"], "test", "exec"), {"__name__": "test"})
    break
"""


class Ended(NamedTuple):
    """What a process left: its exit code (negative: the signal that ended it) and what it printed."""

    code: int
    out: str
    err: str


class Parent:
    """Starts processes that have imported JAX already.

    Args:
      folder: for what they print.
      variables: what JAX reads when it is imported.
    """

    def __init__(self, folder: Path, **variables: str):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", PARENT]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe)
        self._folder, self._count = folder, 0

    def run(
        self, code: str, variables: Sequence[Mapping[str, str]], *arguments: str, timeout: float = 120
    ) -> list[Ended]:
        """Runs `code` once with each set of variables, all at the same time, until all have ended."""
        assert self._process.stdin and self._process.stdout
        folders, numbers = [], []
        for of_one in variables:
            self._count += 1
            folder = self._folder / f"process_{self._count}"
            folder.mkdir()
            job = {"code": code, "variables": dict(of_one), "arguments": arguments, "folder": str(folder)}
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            numbers.append(int(self._process.stdout.readline()))
            folders.append(folder)
        deadline = time.monotonic() + timeout
        try:
            while not all((folder / "code").exists() for folder in folders):
                texts = [(folder / "err").read_text() for folder in folders if (folder / "err").exists()]
                assert time.monotonic() < deadline, texts
                time.sleep(0.02)
        finally:
            for folder, number in zip(folders, numbers, strict=True):
                if not (folder / "code").exists():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
        return [
            Ended(int((folder / "code").read_text()), (folder / "out").read_text(), (folder / "err").read_text())
            for folder in folders
        ]

    def close(self) -> None:
        """Ends the parent."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def parents(folder: Path, **variables: str) -> Iterator[Parent]:
    """A parent, for a fixture."""
    parent = Parent(folder, **variables)
    try:
        yield parent
    finally:
        parent.close()


def joined(count: int, **variables: str) -> list[dict[str, str]]:
    """The variables of `count` processes that find one another by JAX's own names."""
    address = f"127.0.0.1:{free_port()}"
    return [
        variables | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        for index in range(count)
    ]
