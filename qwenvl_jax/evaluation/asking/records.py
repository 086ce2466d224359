"""The records of a benchmark that a config names, opened, and how they are asked."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.evaluation.asking.few_shot import Exemplars
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking
from qwenvl_jax.evaluation.config import BenchmarkConfig
from qwenvl_jax.runtime.errors import UserError


def reader_of(item: BenchmarkConfig) -> RecordReader:
    """The records that are asked. Raises UserError if folder or split is missing."""
    return RecordReader(item.records, item.split or item.benchmark.split or "train")


def asked_count(item: BenchmarkConfig, reader: RecordReader) -> int:
    """How many records are asked."""
    return min(item.limit or len(reader), len(reader))


def asking_of(item: BenchmarkConfig, style: str) -> Asking:
    """Prompt and exemplars of a benchmark.

    Args:
      item: of the config.
      style: of held-out records of training tasks.

    Raises:
      UserError: if exemplars are wanted, but their records are not named or missing.
    """
    if not item.exemplar_count:
        return Asking(style, item.prompt)
    choice = item.benchmark.exemplar_choice
    exemplars = Exemplars(_exemplar_reader(item), item.exemplar_count, choice, item.seed, leak=item.leak)
    return Asking(style, item.prompt, exemplars)


def exemplar_summary(item: BenchmarkConfig) -> dict[str, Any]:
    """The manifest of the records of exemplars, which changes with them; empty if none are shown."""
    return _exemplar_reader(item).summary if item.exemplar_count else {}


def _exemplar_reader(item: BenchmarkConfig) -> RecordReader:
    split = item.exemplar_split or item.benchmark.exemplar_split
    if not split or not (item.exemplars or item.leak):
        raise UserError(
            f"benchmark {item.label!r} shows {item.exemplar_count} answered questions, but no records of these are "
            "named; set `exemplars` to the folder of another split and `exemplar_split` to its name"
        )
    return RecordReader(item.exemplars or item.records, split)
