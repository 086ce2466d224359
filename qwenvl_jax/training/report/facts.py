"""What a report shows, read from the folder of a run that may still be going on, or may have been killed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import layout, lineage, steps
from qwenvl_jax.config import Config
from qwenvl_jax.runtime import json_lines, storage
from qwenvl_jax.training.goodput import Account, read_account

Line = Mapping[str, Any]  # of metrics.jsonl or evaluations.jsonl
# What a line of metrics.jsonl has besides numbers: numbers by name, and in the group `data` some by source.
_GROUPS = ("loss_by_task", "loss_by_source", "supervised_by_source", "timing")
_BY_SOURCE = ("seen", "epochs", "cut", "dropped", "filtered", "corrupt")


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """A run as its folder shows it.

    Attributes:
      workdir: the folder.
      config: of the run.
      lineage: where its components came from; empty if the run has not begun.
      lines: of `metrics.jsonl`, by step.
      evaluations: of `evaluations.jsonl`, by step.
      account: of the ledger.
      checkpoints: steps of finished checkpoints.
      damaged: names of checkpoints that were set aside.
    """

    workdir: epath.Path
    config: Config
    lineage: Mapping[str, Any]
    lines: Sequence[Line]
    evaluations: Sequence[Line]
    account: Account
    checkpoints: Sequence[int]
    damaged: Sequence[str]

    @property
    def step(self) -> int:
        """The last step that the run is known to have taken."""
        logged = int(self.lines[-1]["step"]) if self.lines else 0
        started = self.account.starts[-1].last_step if self.account.starts else 0
        return max(logged, started, *self.checkpoints, 0)

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint is written."""
        return self.config.train.steps in self.checkpoints


def read_facts(workdir: epath.PathLike) -> RunFacts:
    """Reads the folder of a run.

    Raises:
      UserError: if it is not the folder of a run.
    """
    folder = storage.path(workdir)
    config = lineage.read_config(folder)
    return RunFacts(
        workdir=folder,
        config=config,
        lineage=lineage.read_lineage(folder) if lineage.has_run(folder) else {},
        lines=_logged(folder / layout.METRICS),
        evaluations=[_numbers_of(line) for line in _measured(folder / layout.EVALUATIONS)],
        account=read_account(folder),
        checkpoints=steps.finished_steps(folder),
        damaged=steps.damaged_names(folder),
    )


def _logged(path: epath.Path) -> list[Line]:
    """The lines of `metrics.jsonl` that have a step, a loss and times: their numbers, and their groups of numbers."""
    lines: list[Line] = []
    for line in _measured(path):
        groups = {name: json_lines.numbers(line.get(name)) for name in _GROUPS}
        counted = line["data"] if isinstance(line.get("data"), Mapping) else {}
        by_source = {name: json_lines.numbers(counted.get(name)) for name in _BY_SOURCE}
        if _is_number(line.get("loss")) and isinstance(line.get("timing"), Mapping):
            lines.append({**_numbers_of(line), **groups, "data": json_lines.numbers(counted) | by_source})
    return lines


def _measured(path: epath.Path) -> list[Line]:
    """The lines of a log that have a step."""
    return [line for _, line in json_lines.read(path) if json_lines.step_of(line) is not None]


def _numbers_of(line: Line) -> dict[str, Any]:
    """The numbers of a line itself. A loss may be none that is finite."""
    return {name: value for name, value in line.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return json_lines.number(value) is not None or (isinstance(value, float) and not math.isfinite(value))
