"""Writes a page about a run, which may still train or may have been killed: curves, time, restarts, data, lineage.

python -m qwenvl_jax.report --workdir=runs/stage2

The page is report.html in the folder of the run. It needs no other file and no network (docs/watching.md).
"""

from __future__ import annotations

from absl import flags

from qwenvl_jax.runtime import commandline, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.report.live import write_report

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://.")


def main(workdir: str = "") -> None:
    """Writes the report of the run and prints its path."""
    workdir = workdir or _WORKDIR.value or ""
    if not workdir:
        raise UserError("the folder of a run is missing; write python -m qwenvl_jax.report WORKDIR")
    print(write_report(storage.path(workdir)))


if __name__ == "__main__":
    commandline.run(main, positional=1, needs_config=False)
