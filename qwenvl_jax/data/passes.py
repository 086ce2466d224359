"""How often a stage reads its sources: expected samples and passes, and the rows per step of one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from qwenvl_jax.config import Config

MANY = 2  # passes over a source above which a run is warned
ALL = "all sources"


class Expected(NamedTuple):
    """What a stage reads of a source, or of all.

    Attributes:
      drawn: samples over all its steps.
      passes: `drawn`, divided by the samples of the source.
    """

    drawn: float
    passes: float


def expected_passes(
    config: Config, samples_per_row: float, samples: Mapping[str, int] | None = None
) -> dict[str, Expected]:
    """The expected samples and passes by source, and under `ALL` in all.

    Every source is assumed to keep the share of its first weight (of its highest weight, if the first is 0).

    Args:
      config: the run's.
      samples_per_row: mean of the packed rows.
      samples: by source. Without them a weight counts as millions of samples, as in the full-size stages.
    """
    drawn = config.train.steps * config.data.rows_per_step * samples_per_row
    weights = {s.name: s.weight or max(point[1] for point in s.schedule) for s in config.data.mixture}
    total = sum(weights.values()) or 1.0
    known: Mapping[str, float] = samples or {name: weight * 1e6 for name, weight in weights.items()}
    of_sources = {name: drawn * weight / total for name, weight in weights.items()}
    expected = {name: Expected(count, count / max(known[name], 1)) for name, count in of_sources.items()}
    return {**expected, ALL: Expected(drawn, drawn / max(sum(known.values()), 1))}


def rows_of_one_pass(config: Config, samples_per_row: float, samples: Mapping[str, int]) -> int:
    """The `rows_per_step` with which `config.train.steps` steps read as many samples as all sources have."""
    return math.ceil(sum(samples.values()) / config.train.steps / samples_per_row)


def many_passes(expected: Mapping[str, Expected]) -> str:
    """A sentence about the sources that are read more than `MANY` times; "" if there is none."""
    many = {name: one.passes for name, one in expected.items() if name != ALL and one.passes > MANY}
    if not many:
        return ""
    worst = max(many, key=lambda name: many[name])
    others = f", more than {MANY} over {len(many)} sources" if len(many) > 1 else ""
    return (
        f"about {many[worst]:.1f} passes over {worst} are expected{others}; fewer rows (config.data.rows_per_step) or "
        "steps (config.train.steps) make fewer"
    )
