"""Replays a step that a run has left out: which samples, which tower, which number is not finite.

python -m qwenvl_jax.replay --workdir=runs/stage2 --step=1234
"""

from __future__ import annotations

from absl import flags

from qwenvl_jax.runtime import commandline, distributed, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.replay import replay

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://.")
_STEP = flags.DEFINE_integer("step", None, "The step; its batch is in the folder anomalies/step_N.")


def main() -> None:
    """Prints the report."""
    if not _WORKDIR.value or _STEP.value is None:
        raise UserError("name a run and a step: --workdir=runs/stage2 --step=1234")
    distributed.require_alone("replay")
    for line in replay(storage.path(_WORKDIR.value), _STEP.value):
        print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main)
