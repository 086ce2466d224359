"""All benchmarks by name, and the rows of tables that join several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from qwenvl_jax.evaluation.benchmarks import (
    captions,
    debian,
    documents,
    mme,
    multiple_choice,
    pure_text,
    referring,
    touchstone,
    vqa,
)
from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.held_out.registry import HELD_OUT


@dataclasses.dataclass(frozen=True)
class JoinedRow:
    """A row of a table that is the weighted mean of the main figures of several benchmarks.

    Attributes:
      name: of the row.
      title: for tables.
      weights: of each benchmark by name; their sum is 1 (`statistics.weighted_sum`).
      table, paper, note: as in `Benchmark`.
    """

    name: str
    title: str
    weights: Mapping[str, float]
    table: str
    paper: Mapping[str, float]
    note: str = ""


# In the order of the paper's tables.
_ALL = (
    *captions.BENCHMARKS,
    *vqa.BENCHMARKS,
    *documents.BENCHMARKS,
    *referring.BENCHMARKS,
    *multiple_choice.BENCHMARKS,
    *mme.BENCHMARKS,
    *touchstone.BENCHMARKS,
    *pure_text.BENCHMARKS,
)
PUBLISHED: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
DEBIAN: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in debian.BENCHMARKS}
BENCHMARKS: dict[str, Benchmark] = HELD_OUT | PUBLISHED | DEBIAN

JOINED_ROWS = (
    JoinedRow(
        "chartqa_test",
        "ChartQA test",
        {"chartqa_test_human": 0.5, "chartqa_test_augmented": 0.5},
        table="5",
        paper={"Qwen-VL": 65.7, "Qwen-VL-Chat": 66.3},
        note="The mean of the two halves, which have 1,250 questions each; the paper does not say how it joins them.",
    ),
)
