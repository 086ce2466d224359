"""Which record of which source comes next: the sampler of one logical stream of a stage.

Sources interleave in proportion to their weights, every source is shuffled anew in each of its epochs and repeats for
ever (paper, Tables 2 and 3). Stream s of S takes the indices s, s + S, s + 2 S, ... of every source's shuffled
repetition, so together the streams read each record once per epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from qwenvl_jax.config import DataConfig, SourceConfig
from qwenvl_jax.data.readers.source import Source, open_source
from qwenvl_jax.runtime.errors import UserError


def source_seed(seed: int, name: str) -> int:
    """A shuffle seed of 32 bits per source, so that adding a source leaves the order of the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little")


def check_schedules(sources: Sequence[SourceConfig]) -> None:
    """Raises UserError if a schedule is malformed, or if all weights are zero at some step."""
    for source in sources:
        steps = [0.0, *(point[0] for point in source.schedule if len(point) == 2 and point[1] >= 0)]
        if len(steps) != len(source.schedule) + 1 or steps != sorted(set(steps)):
            raise UserError(
                f"the schedule of source {source.name!r} must be pairs (step, weight) with rising steps above 0 and no "
                "weight below 0"
            )
    # Between these steps all weights are linear, so a sum of 0 would show at one of them.
    for step in (0.0, *(point[0] for source in sources for point in source.schedule)):
        if not any(_weights(sources, step)):
            raise UserError(f"no source of config.data.mixture has any weight at step {step:g}; change the schedules")


def _weights(sources: Sequence[SourceConfig], step: float) -> list[float]:
    weights = []
    for source in sources:
        steps, values = zip((0.0, source.weight), *source.schedule, strict=True)
        weights.append(float(np.interp(step, steps, values)))
    return weights


def weights_at(sources: Sequence[SourceConfig], step: int) -> list[float]:
    """Every source's share of the samples drawn for a step (from 0): linear between the points of its schedule."""
    weights = _weights(sources, step)
    total = sum(weights)
    return [weight / total for weight in weights]


class Sampler:
    """Draws (source number, record index) pairs without end.

    Every draw gives each source credit in proportion to its weight and takes from the source with most credit: at
    constant weights the numbers drawn differ from their shares by at most one or two. Every stream begins with
    different credits, so that the streams do not all read the same source at once.

    Args:
      sources: the entries of the mixture.
      lengths: records of each source.
      seed: of the mixture.
      stream: number of this stream.
      streams: how many there are.
    """

    def __init__(self, sources: Sequence[SourceConfig], lengths: Sequence[int], seed: int, stream: int, streams: int):
        self._sources = sources
        self._stream = stream
        self._streams = streams
        self._orders = [
            grain.MapDataset.range(length).shuffle(seed=source_seed(seed, source.name)).repeat()
            for source, length in zip(sources, lengths, strict=True)
        ]
        starts = np.random.default_rng((seed, stream)).random(len(sources))
        self._credits = [start * share for start, share in zip(starts.tolist(), weights_at(sources, 0), strict=True)]
        self._drawn = [0] * len(sources)

    def draw(self, step: int) -> tuple[int, int]:
        """The source and the record index of the next sample, at the weights of a step."""
        shares = weights_at(self._sources, step)
        self._credits = [credit + share for credit, share in zip(self._credits, shares, strict=True)]
        number = self._credits.index(max(self._credits))
        self._credits[number] -= 1
        index = self._drawn[number] * self._streams + self._stream
        self._drawn[number] += 1
        return number, int(self._orders[number][index])

    def state(self) -> dict[str, Any]:
        """The position of the sampler, as JSON values."""
        return {"credits": list(self._credits), "drawn": list(self._drawn)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a `state`."""
        self._credits = list(state["credits"])
        self._drawn = list(state["drawn"])


def open_sources(data: DataConfig, split: str = "train", *, verify: bool = False) -> list[Source]:
    """Opens the records of every source (`source.open_source`).

    Raises:
      UserError: if a source cannot be opened (`source.open_source`), or a schedule is malformed.
    """
    check_schedules(data.mixture)
    share = data.max_corrupt_share
    return [open_source(source, split, verify=verify, max_corrupt_share=share) for source in data.mixture]
