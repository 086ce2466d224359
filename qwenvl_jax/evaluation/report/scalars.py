"""The figures of a sweep for TensorBoard, in one folder per run and with the step of the checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from etils import epath

from qwenvl_jax.evaluation.results.entries import Entry
from qwenvl_jax.evaluation.results.figures import Figure
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.events import EventWriter

FOLDER = "tensorboard"
_LONGEST = 100  # characters of a part of a tag
_UNSAFE = re.compile(r"[^\w. ,()-]+", re.ASCII)


def write_scalars(output: epath.Path, entries: Sequence[Entry]) -> epath.Path:
    """Writes `<output>/tensorboard/<run>` anew. Tags are `<benchmark>/<figure>`, with `.low` and `.high`.

    Values are in the unit of papers. An entry whose step is unknown is left out.

    Returns:
      The folder, which `tensorboard --logdir` takes.
    """
    folder = output / FOLDER
    storage.remove(folder)
    by_run: dict[str, dict[int, dict[str, float]]] = {}
    for entry in entries:
        if entry.step >= 0 and entry.figures:
            steps = by_run.setdefault(entry.run or entry.checkpoint, {})
            steps.setdefault(entry.step, {}).update(_values(entry))
    for run, steps in by_run.items():
        writer = EventWriter(folder / _folder_name(run, by_run))
        for step in sorted(steps):
            writer.add(step, steps[step])
        writer.close()
    return folder


def _values(entry: Entry) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, figure in entry.figures.items():
        values |= _tagged(f"{_safe(entry.label)}/{_safe(name)}", figure)
        for part, of_part in figure.figures.items():
            values |= _tagged(f"{_safe(entry.label)}/{_safe(name)}/{_safe(part)}", of_part)
    return values


def _tagged(tag: str, figure: Figure) -> dict[str, float]:
    numbers = {tag: figure.value, f"{tag}.low": figure.low, f"{tag}.high": figure.high}
    return {name: value * figure.unit for name, value in numbers.items() if value is not None}


def _safe(text: str) -> str:
    """A text as a part of a tag."""
    return _UNSAFE.sub("_", text)[:_LONGEST] or "_"


def _folder_name(run: str, runs: Mapping[str, object]) -> str:
    """The last part of the run's folder; with a digest if another run has the same."""
    end = _last(run)
    if sum(_last(other) == end for other in runs) == 1:
        return end
    return f"{end}-{hashlib.sha256(run.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _last(run: str) -> str:
    name = _safe(run.rstrip("/").rpartition("/")[2]).lstrip(".")
    return name or "run"
