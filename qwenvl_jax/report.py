"""Writes a page about a run, which may still train or may have been killed: curves, time, restarts, data, lineage.

python -m qwenvl_jax.report runs/stage2

The page is report.html in the folder of the run. It needs no other file and no network (docs/watching.md).
"""

from __future__ import annotations

from qwenvl_jax.runtime import commandline, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.report.live import write_report


def main(workdir: str = "") -> None:
    """Writes the report of the run and prints its path."""
    if not workdir:
        raise UserError("the folder of a run is missing; write python -m qwenvl_jax.report WORKDIR")
    print(write_report(storage.path(workdir)))


if __name__ == "__main__":
    commandline.run(main, positional=1, needs_config=False)
