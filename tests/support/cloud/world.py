"""The state of a pretended cloud: one JSON file in a folder, which every stand-in locks while it uses it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "PRETENDED_CLOUD"  # the variable that names the folder
MARK = "PRETENDED_HOST"  # the variable that every process of a host has

# Where chips are, as the regions' page of the Cloud TPU documentation says; shortened.
ZONES = {
    "us-central2-b": ["v4"],
    "us-west4-a": ["v5e"],
    "europe-west4-b": ["v5e", "v5p"],
    "us-central1-a": ["v5e", "v5p"],
    "us-east5-a": ["v5p", "v6e"],
    "us-east5-b": ["v6e"],
    "europe-west4-a": ["v6e"],
    "us-central1-c": ["tpu7x"],
    "us-central1-b": ["v6e"],
    "us-west1-a": [],
}

SETTINGS: dict[str, Any] = {
    "account": "someone@example.com",  # "" is logged out
    "project": "a-project",
    "denied": [],  # permissions, e.g. "tpu.nodes.create"
    "quota": {},  # limits in chips by "API/kind/spot or on_demand", e.g. "tpu/v5p/spot"
    "capacity": {},  # free chips by zone; zones that are not named have as many as anybody asks for
    "reservations": [],  # names
    "zones": ZONES,
    "seconds": {"wait": 0.1, "provision": 0.1, "boot": 0.1, "delete": 0.0},  # of one state each
    "fails": [],  # names of nodes that end in FAILED while they are provisioned
    "host_environment": {},  # variables of every process of a host or pod
    "secrets": {},  # values by name
    "buckets": {},  # folders of this machine by name, for the storage commands
    "clusters": {},  # GKE clusters: {"name": "location"}
    "chips_per_host": 4,
}


class Refusal(Exception):
    """What a program prints before it ends with `code`."""

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code


def folder() -> Path:
    """The folder of the state."""
    return Path(os.environ[FOLDER])


@contextlib.contextmanager
def locked() -> Iterator[dict[str, Any]]:
    """The state as nested dictionaries with "settings" and "resources"; changes are written at the end."""
    path = folder() / "state.json"
    with open(folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads(path.read_text())
        yield state
        part = path.with_suffix(".part")
        part.write_text(json.dumps(state, indent=1))
        part.rename(path)


def record_call(program: str, arguments: list[str]) -> None:
    """Appends a command line to `calls.jsonl`."""
    with open(folder() / "calls.jsonl", "a") as file:
        file.write(json.dumps([program, *arguments]) + "\n")


def wait_until(ready: Any, seconds: float = 60.0) -> Any:
    """Asks `ready(state)` until its answer is not None; the answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with locked() as state:
            answer = ready(state)
        if answer is not None:
            return answer
        time.sleep(0.02)
    raise Refusal("ERROR: the operation took too long")


def processes_of(mark: str) -> list[int]:
    """The processes of a host, or of all hosts whose mark begins with `mark`."""
    wanted = f"{MARK}={mark}".encode()
    this_cloud = f"{FOLDER}={os.environ[FOLDER]}".encode()
    numbers = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if this_cloud not in variables:
            continue
        if any(variable == wanted or variable.startswith(wanted + b"/") for variable in variables):
            numbers.append(int(entry.name))
    return numbers


def power_off(mark: str, number: int = signal.SIGKILL) -> None:
    """Sends a signal to every process of a host; with SIGKILL none is left afterwards."""
    while processes := processes_of(mark):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if number != signal.SIGKILL:
            return
        time.sleep(0.01)
