"""How far a run has come: `python -m launch.finished WORKDIR --steps=19000` prints one state or its newest checkpoint.

`finished` is a run whose last step has its checkpoint.
`ended` is a run that a host has given up, or that was stopped, before its last step; stderr names host and exit code.
It reads names in the workdir and imports no jax, so it runs on a laptop.
"""

from __future__ import annotations

import sys

from qwenvl_jax.checkpoint.steps import latest_step
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import exit_on_user_error

FINISHED = "finished"
ENDED = "ended"
ENDS = "launch/ended"  # in the workdir; a supervisor leaves its exit code there, and removes those of earlier runs


def progress(workdir: str, steps: int) -> str:
    """`finished`, `ended`, the newest complete checkpoint as `step 500 of 19000`, or `no checkpoint`."""
    newest = latest_step(workdir)
    if newest is not None and newest >= steps:
        return FINISHED
    if ends(workdir):
        return ENDED
    return "no checkpoint" if newest is None else f"step {newest} of {steps}"


def ends(workdir: str) -> list[str]:
    """What supervisors have left about ends before the last step, e.g. `host-3: exit code 2`."""
    folder = storage.path(workdir) / ENDS
    names = storage.names(folder) if storage.is_folder(folder) else []
    return [storage.read_bytes(folder / name).decode(errors="replace").strip() for name in names]


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
    parser = Parser("python -m launch.finished", __doc__)
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, required=True, help="Steps of the whole stage.")
    with exit_on_user_error():
        arguments = parser.parse_args()
        state = progress(arguments.workdir, arguments.steps)
        if state == ENDED:
            print(*ends(arguments.workdir), sep="\n", file=sys.stderr)
        print(state)
