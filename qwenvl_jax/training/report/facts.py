"""What a report shows, read from the folder of a run that may still be going on, or may have been killed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import layout, lineage, steps
from qwenvl_jax.config import Config
from qwenvl_jax.runtime import storage
from qwenvl_jax.training.goodput import Account, read_account

Line = Mapping[str, Any]  # of metrics.jsonl or evaluations.jsonl


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
        lines=_lines(folder / layout.METRICS, ("loss", "timing")),
        evaluations=_lines(folder / layout.EVALUATIONS, ()),
        account=read_account(folder),
        checkpoints=steps.finished_steps(folder),
        damaged=steps.damaged_names(folder),
    )


def _lines(path: epath.Path, needed: Sequence[str]) -> list[Line]:
    """The lines of a file with one JSON object each; those that cannot be read are left out."""
    try:
        texts = storage.read_bytes(path).splitlines()
    except FileNotFoundError:
        return []
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
            if isinstance(line["step"], int) and all(key in line for key in needed):
                lines.append(line)
        except (ValueError, LookupError, TypeError):
            continue
    return lines
