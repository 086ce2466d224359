"""Going back: a run continues from an older checkpoint; everything that was written after it is kept under other names.

The lineage notes it. The same command is often repeated by a scheduler, so a return to a step is carried out once: if
the last return that is noted led to the same step, the run goes on from its newest checkpoint.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import lineage, steps
from qwenvl_jax.checkpoint.layout import EVALUATIONS, METRICS
from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.checkpoint.restore import read_and_check
from qwenvl_jax.params import Params
from qwenvl_jax.runtime import distributed, log, storage
from qwenvl_jax.runtime.errors import UserError

LATER = ".later"  # ends the name of what was written after the checkpoint
_LOGS = (METRICS, EVALUATIONS)


def wanted(workdir: epath.Path, step: int | None, local: LocalCheckpoints | None = None) -> int | None:
    """The step of `--from_step`, or None if there is nothing to go back to.

    Args:
      workdir: the run's folder.
      step: the value of the flag, None without it.
      local: of the run; one of these may be meant as well.

    Raises:
      UserError: if there is no finished checkpoint of that step, or a process has another value.
    """
    distributed.agree({"--from_step": str(step)})
    if step is None:
        return None
    local_steps = local.steps() if local else []

    def look() -> bool:
        if not lineage.has_run(workdir):
            raise UserError(f"{workdir} has no run that --from_step could go back in; leave the flag out to start one")
        finished = sorted({*steps.finished_steps(workdir), *local_steps})
        if step not in finished:
            known = ", ".join(map(str, finished)) or "none at all"
            raise UserError(
                f"--from_step={step}: {workdir} holds no checkpoint of that step (there are {known}); name another one"
            )
        return lineage.last_return(workdir) == step

    if distributed.from_primary(look):
        log.line(
            f"{workdir} has gone back to step {step} before and continues from its newest checkpoint; to go back once "
            "more, move the later checkpoints away"
        )
        return None
    return step


def state_of(
    workdir: epath.Path, step: int, params: Params, opt_state: Any, local: LocalCheckpoints | None = None
) -> tuple[Params, Any, dict[str, Any]]:
    """Reads the checkpoint of `step` and then moves everything aside that was written after it.

    Args:
      workdir: the run's folder.
      step: from `wanted`.
      params: shapes, dtypes and shardings of the trained parameters.
      opt_state: of the optimiser's state.
      local: of the run; it has the checkpoint if `workdir` has not.

    Returns:
      (params, opt_state, progress).

    Raises:
      UserError: if the checkpoint is damaged; then nothing is moved.
    """
    if local is None or distributed.from_primary(lambda: step in steps.finished_steps(workdir)):
        restored, reason = read_and_check(workdir, step, params, opt_state)
    else:
        restored, reason = local.read_and_check(step, params, opt_state)
    if restored is None:
        raise UserError(
            f"--from_step={step}: that checkpoint of {workdir} is damaged ({reason}); name another one, nothing has "
            "been moved"
        )
    kept = distributed.from_primary(lambda: _move_aside(workdir, step))
    log.line(f"going back to step {step}" + (f": what came later is kept as {', '.join(kept)}" if kept else ""))
    return restored


def _move_aside(workdir: epath.Path, step: int) -> list[str]:
    """Gives later checkpoints other names and copies the logs, which the run then cuts; returns the names."""
    copies = []
    names = set(storage.names(workdir))
    for log_name in _LOGS:
        if log_name in names:
            copies.append(steps.free_name(f"{log_name}{LATER}", names))
            storage.write_bytes(workdir / copies[-1], storage.read_bytes(workdir / log_name))
    later = [number for number in steps.finished_steps(workdir) if number > step]
    moved = [steps.set_aside(workdir, number, LATER) for number in reversed(later)][::-1]
    lineage.note_return(workdir, step, moved)
    return [*moved, *copies]
