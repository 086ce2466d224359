"""Which record of which source comes next: a selection map of Grain, a pure function of the position in a stream.

Sources interleave in proportion to their weights, every source is shuffled anew in each of its epochs and repeats for
ever (paper, Tables 2 and 3). Stream s of S takes the records s, s + S, s + 2 S, ... of every source's shuffled
repetition, so together the streams read each record once per epoch.

Weights are in samples. A record may hold several samples, so a source is drawn in proportion to its weight divided by
its mean number of samples per record.

Shape suffixes: P points of the schedules, N sources.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence

import grain
import numpy as np

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.runtime.errors import UserError

_BLOCK = 1024  # draws of a stream that are computed at once
_CACHED = 8  # blocks that are kept: those around the positions that are being read


def source_seed(seed: int, name: str) -> int:
    """A shuffle seed of 32 bits per source, so that adding a source leaves the order of the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little")


def check_schedules(sources: Sequence[SourceConfig]) -> None:
    """Raises UserError if a schedule is malformed, or if all weights are zero at some time."""
    for source in sources:
        times = [0.0, *(point[0] for point in source.schedule if len(point) == 2 and point[1] >= 0)]
        if len(times) != len(source.schedule) + 1 or times != sorted(set(times)):
            raise UserError(
                f"the schedule of source {source.name!r} must be pairs (samples, weight) with rising samples above 0 "
                "and no weight below 0"
            )
    # Between these times all weights are linear, so a sum of 0 would show at one of them.
    for time in _times(sources):
        if not _weights(sources, time).any():
            raise UserError(
                f"no source of config.data.mixture has any weight after {time:g} samples; change the schedules"
            )


def _times(sources: Sequence[SourceConfig]) -> list[float]:
    """The times, in samples of the run, between which all weights are linear; the first is 0."""
    return sorted({0.0, *(point[0] for source in sources for point in source.schedule)})


def _weights(sources: Sequence[SourceConfig], time: float) -> np.ndarray:
    weights = []
    for source in sources:
        times, values = zip((0.0, source.weight), *source.schedule, strict=True)
        weights.append(float(np.interp(time, times, values)))
    return np.array(weights)


class MixtureSelectionMap(grain.transforms.DatasetSelectionMap):
    """Position in a stream -> (index of the source, how often this stream has drawn from it before).

    Draw k of a source is due at the time at which its share of all draws, summed up, passes k + 1 minus a phase in
    [0, 1) that depends on the stream, so that the streams do not all read the same source at once. Draws are in the
    order of these times. At any time the number of draws of a source therefore differs from its share by at most one or
    two, and any position is computed at the same cost.

    Between two points of the schedules the shares of draws are linear. All streams follow the same schedules; only
    their phases differ.

    Args:
      sources: the entries of the mixture.
      samples_per_record: of each source, on average.
      seed: of the mixture.
      stream: index of this stream.
      streams: number of streams.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        samples_per_record: Sequence[float],
        seed: int,
        stream: int,
        streams: int,
    ):
        check_schedules(sources)
        means_N = np.asarray(samples_per_record)
        times_P = np.array(_times(sources))
        rates_PN = np.stack([_weights(sources, time) for time in times_P]) / means_N
        self._shares_PN = rates_PN / rates_PN.sum(1, keepdims=True)
        # Samples per draw are linear too, so a segment has its length in samples divided by their mean.
        per_draw_P = self._shares_PN @ means_N
        draws_P = np.diff(times_P) / ((per_draw_P[:-1] + per_draw_P[1:]) / 2) / streams
        self._starts_P = np.concatenate([[0.0], np.cumsum(draws_P)])
        mean_shares_PN = (self._shares_PN[:-1] + self._shares_PN[1:]) / 2
        self._sums_PN = np.concatenate([np.zeros((1, len(sources))), np.cumsum(mean_shares_PN * draws_P[:, None], 0)])
        self._phases_N = np.random.default_rng((seed, stream)).random(len(sources))
        self._first = functools.lru_cache(_CACHED)(lambda number: int(self._drawn(number * _BLOCK).sum()))
        self._block = functools.lru_cache(_CACHED)(self._compute_block)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        number = position // _BLOCK  # near the right one: phases add less than one draw per source
        while position < self._first(number):
            number -= 1
        while position >= self._first(number + 1):
            number += 1
        first, sources, counts = self._block(number)
        return int(sources[position - first]), int(counts[position - first])

    def _drawn(self, time: float) -> np.ndarray:
        """[N] draws of every source that are due up to a time, in draws of this stream."""
        point = int(np.searchsorted(self._starts_P, time, side="right")) - 1
        passed = time - self._starts_P[point]
        summed_N = self._sums_PN[point] + passed * (self._shares_PN[point] + passed * self._slopes_N(point) / 2)
        return np.floor(summed_N + self._phases_N).astype(np.int64)

    def _slopes_N(self, point: int) -> np.ndarray:
        """[N] rise of the shares per draw after a point."""
        if point + 1 == len(self._starts_P):
            return np.zeros(len(self._phases_N))
        rise_N = self._shares_PN[point + 1] - self._shares_PN[point]
        return rise_N / (self._starts_P[point + 1] - self._starts_P[point])

    def _compute_block(self, number: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The position of the first draw of a block; of all its draws, the source and how often it was drawn before."""
        before_N = self._drawn(number * _BLOCK)
        after_N = self._drawn((number + 1) * _BLOCK)
        by_source = [np.arange(before, after) for before, after in zip(before_N, after_N, strict=True)]
        sources = np.repeat(np.arange(len(by_source)), [len(counts) for counts in by_source])
        due = np.concatenate([self._due(source, counts) for source, counts in enumerate(by_source)])
        order = np.argsort(due, kind="stable")
        return int(before_N.sum()), sources[order], np.concatenate(by_source)[order]

    def _due(self, source: int, counts: np.ndarray) -> np.ndarray:
        """The times at which draws of a source are due."""
        sums = counts + 1 - self._phases_N[source]
        points = np.searchsorted(self._sums_PN[:, source], sums, side="left") - 1
        points = np.clip(points, 0, len(self._starts_P) - 1)
        rest = np.maximum(sums - self._sums_PN[points, source], 0)
        shares = self._shares_PN[points, source]
        slopes = np.array([self._slopes_N(point)[source] for point in range(len(self._starts_P))])[points]
        # The root of shares * x + slopes * x**2 / 2 = rest, in the form that holds for slopes of 0 too.
        root = np.sqrt(np.maximum(shares**2 + 2 * slopes * rest, 0))
        return self._starts_P[points] + 2 * rest / np.maximum(shares + root, 1e-300)
