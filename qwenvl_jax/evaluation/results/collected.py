"""Makes the entries of results.json from the predictions of a sweep. No model is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from etils import epath

from qwenvl_jax.config import to_dict
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.results.answers import read_rows, summary_of, unchanged_summary
from qwenvl_jax.evaluation.results.entries import RESULTS, Entry, read_results, write_results
from qwenvl_jax.evaluation.results.figures import Rows, compare, figures_of, read_clean
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


class _Answered:
    """The rows and the summary of one benchmark of one checkpoint."""

    def __init__(self, checkpoint: CheckpointConfig, summary: dict[str, Any], rows: Rows) -> None:
        self.checkpoint = checkpoint
        self.summary = summary
        self.rows = rows


Pairs = Collection[tuple[str, str]]  # of the name of a checkpoint and the label of a benchmark


def collect(config: EvalConfig, predictions: epath.Path, unfinished: Pairs = ()) -> list[Entry]:
    """The entries of all benchmarks that are finished, in the order of the config.

    Args:
      config: of the sweep.
      predictions: its folder of that name.
      unfinished: is left out, because its files, if there are any, belong to an earlier sweep.

    Raises:
      UserError: if a list of clean questions is missing or is something else.
    """
    entries = []
    for item in config.benchmarks:
        clean = read_clean(item.clean) if item.clean else None
        finished = [each for each in config.checkpoints if (each.name, item.label) not in unfinished]
        named = next((each for each in finished if each.name == config.baseline), None)
        baseline = _answered(named, predictions, item) if named else None
        for checkpoint in finished:
            answered = _answered(checkpoint, predictions, item)
            if answered is None:
                continue
            is_baseline = baseline is not None and baseline.checkpoint.name == checkpoint.name
            entries.append(_entry(item, answered, None if is_baseline else baseline, clean))
            if not config.baseline:
                baseline = answered
    order = {checkpoint.name: number for number, checkpoint in enumerate(config.checkpoints)}
    return sorted(entries, key=lambda entry: order[entry.checkpoint])


def write_collected(
    config: EvalConfig, output: epath.Path, predictions: epath.Path, unfinished: Pairs = ()
) -> list[Entry]:
    """Collects the entries and writes `<output>/results.json`."""
    made_from = _made_from(config, predictions, unfinished)
    entries = collect(config, predictions, unfinished)
    write_results(output, entries, made_from)
    return entries


def current_entries(
    config: EvalConfig, output: epath.Path, predictions: epath.Path, unfinished: Pairs = ()
) -> list[Entry]:
    """The entries of results.json if they belong to config and predictions; otherwise they are made and written anew.

    Scoring takes minutes for large benchmarks.
    """
    if storage.exists(output / RESULTS):
        try:
            return read_results(output, _made_from(config, predictions, unfinished))
        except UserError:
            pass  # of older predictions, or of an older version
    return write_collected(config, output, predictions, unfinished)


def _made_from(config: EvalConfig, predictions: epath.Path, unfinished: Pairs) -> str:
    """Changes with the config, the predictions, the lists of clean questions, and the benchmarks that are left out."""
    files: list[object] = [sorted(read_clean(item.clean)) for item in config.benchmarks if item.clean]
    for checkpoint in config.checkpoints:
        for item in config.benchmarks:
            files.append(summary_of(predictions / checkpoint.name, item.label))
    return hashlib.sha256(json.dumps([to_dict(config), files, sorted(unfinished)], sort_keys=True).encode()).hexdigest()


def _answered(checkpoint: CheckpointConfig, predictions: epath.Path, item: BenchmarkConfig) -> _Answered | None:
    """A finished benchmark of a checkpoint; None if it is not finished or was damaged."""
    folder = predictions / checkpoint.name
    summary = unchanged_summary(folder, item.label)
    return _Answered(checkpoint, summary, read_rows(folder, item.label)) if summary is not None else None


def _entry(
    item: BenchmarkConfig, answered: _Answered, baseline: _Answered | None, clean: frozenset[str] | None
) -> Entry:
    rows = answered.rows
    questions = answered.summary["questions"]
    return Entry(
        checkpoint=answered.checkpoint.name,
        run=answered.checkpoint.workdir,
        step=answered.summary.get("step", answered.checkpoint.step),
        benchmark=item.name,
        label=item.label,
        shots=item.exemplar_count,
        leak=item.leak,
        prompt=item.prompt,
        baseline=baseline.checkpoint.name if baseline else "",
        judge=answered.summary.get("judge", {}).get("model", ""),
        questions=questions,
        unanswered=len(answered.summary.get(UNANSWERED, ())),
        seconds=answered.summary["seconds"],
        tokens=answered.summary["tokens"],
        figures=figures_of(item.benchmark, rows, clean, lost=questions - len(rows)),
        comparisons=compare(item.benchmark, rows, baseline.rows) if baseline else {},
    )
