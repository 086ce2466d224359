"""How far a run has come: `python -m launch.finished WORKDIR --steps=19000` prints one state or its newest checkpoint.

`finished` is a run whose last step has its checkpoint.
`ended` is a run that a host has given up, or that was stopped, before its last step; stderr names host and exit code.
It reads names in the workdir and imports no jax, so it runs on a laptop.
"""

from __future__ import annotations

import argparse
import sys

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import exit_on_user_error

FINISHED = "finished"
ENDED = "ended"
ENDS = "launch/ended"  # in the workdir; a supervisor leaves its exit code there, and removes those of earlier runs
# As in qwenvl_jax/checkpoint: the folder of checkpoints, and the file that Orbax writes into a complete one last.
_CHECKPOINTS = "checkpoints"
_MARKER = "commit_success.txt"


def progress(workdir: str, steps: int) -> str:
    """`finished`, `ended`, the newest complete checkpoint as `step 500 of 19000`, or `no checkpoint`."""
    folder = storage.path(workdir) / _CHECKPOINTS
    names = storage.names(folder) if storage.is_folder(folder) else []
    steps_there = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    newest = next((step for step in steps_there if storage.exists(folder / str(step) / _MARKER)), None)
    if newest is not None and newest >= steps:
        return FINISHED
    if ends(workdir):
        return ENDED
    return "no checkpoint" if newest is None else f"step {newest} of {steps}"


def ends(workdir: str) -> list[str]:
    """What supervisors have left about ends before the last step, e.g. `host-3: exit code 2`."""
    folder = storage.path(workdir) / ENDS
    names = storage.names(folder) if storage.is_folder(folder) else []
    return [storage.read_bytes(folder / name).decode().strip() for name in names]


def forget_ends(workdir: str) -> None:
    """Removes what earlier runs have left."""
    folder = storage.path(workdir) / ENDS
    for name in storage.names(folder) if storage.is_folder(folder) else []:
        storage.remove(folder / name)


def note_end(workdir: str, host: str, code: int) -> None:
    """Leaves the exit code of a host, unless it is a success."""
    if code:
        folder = storage.path(workdir) / ENDS
        storage.make_folder(folder)
        storage.write_bytes(folder / f"{host}.txt", f"{host}: exit code {code}\n".encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m launch.finished", allow_abbrev=False)
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args(sys.argv[1:])
    with exit_on_user_error():
        state = progress(arguments.workdir, arguments.steps)
        if state == ENDED:
            print(*ends(arguments.workdir), sep="\n", file=sys.stderr)
        print(state)
