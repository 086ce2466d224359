"""progress.json: the questions that a sweep asks, so that a killed sweep has a report of its answers so far.

The file is there while a sweep runs and after it was killed. It lists every benchmark that had no result when the sweep
began. Whether one of these has ended since is decided by its own files, which may be newer than the list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from etils import epath

from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.results.layout import PREDICTIONS, PROGRESS
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Asked:
    """A benchmark that a sweep asks a checkpoint.

    Attributes:
      checkpoint: its name in the config.
      label: of the benchmark.
      questions: how many there are, unreadable records included.
      settings: see `answers.Answers`.
      fingerprint: of the result, see `answers.finished`.
    """

    checkpoint: str
    label: str
    questions: int
    settings: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A benchmark that a sweep has not finished for a checkpoint.

    Attributes:
      checkpoint: its name in the config.
      label: of the benchmark.
      answered: how many different questions have a stored answer.
      questions: how many there are.
    """

    checkpoint: str
    label: str
    answered: int
    questions: int

    def __str__(self) -> str:
        return f"{self.checkpoint}, {self.label}: {self.answered:,} of {self.questions:,} questions answered"


def write_progress(output: epath.Path, asked: Iterable[Asked]) -> None:
    """Writes the list."""
    artifacts.write_json(output / PROGRESS, {"asked": [dataclasses.asdict(each) for each in asked]})


def remove_progress(output: epath.Path) -> None:
    """Removes the list, because everything is finished."""
    storage.remove(output / PROGRESS)


def unfinished(output: epath.Path) -> list[Unfinished]:
    """The benchmarks that a running or killed sweep has not finished, in its order; empty after a finished sweep.

    Raises:
      UserError: if the list is not what a sweep writes.
    """
    entries = []
    for each in _read(output / PROGRESS):
        folder = output / PREDICTIONS / each.checkpoint
        if answers.finished(folder, each.label, each.fingerprint) is None:
            stored = len(answers.Answers(folder, each.label, each.settings).known)
            entries.append(Unfinished(each.checkpoint, each.label, min(stored, each.questions), each.questions))
    return entries


def _read(file: epath.Path) -> Sequence[Asked]:
    if not storage.exists(file):
        return ()
    try:
        return [Asked(**values) for values in artifacts.read_json(file)["asked"]]
    except (TypeError, KeyError):
        raise UserError(f"{file} is not what an evaluation writes; run the evaluation again") from None
