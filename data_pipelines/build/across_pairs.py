"""The steps of a rule across pairs: keys of the parts -> buckets of equal keys -> verdicts for the parts.

Two pairs that share a key meet in the bucket of that key, wherever they are in the corpus. Parts are taken in groups,
so that a bucket reads one slice per group and a group one slice per bucket, and memory holds one group or one bucket.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.job import Job
from data_pipelines.build.part_files import PartReader, damage_named, key_dtype
from data_pipelines.build.slices import read_slice, read_slices, write_slices
from data_pipelines.build.survey import survey
from data_pipelines.clean.across import AcrossRule
from qwenvl_jax.runtime import storage

_COMPARED = 1000  # better pairs with the same key that a pair is compared with; the best come first

DROPPED = np.dtype([("part", "<u4"), ("index", "<u4"), ("by_part", "<u4"), ("by_index", "<u4")])
_ALIVE = np.dtype([("alive", "?")])


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """One rule across pairs of one survey: the files of its three steps."""

    job: Job
    rule: int

    @property
    def _settings(self) -> AcrossRule:
        return self.job.across[self.rule]

    @property
    def _dtype(self) -> np.dtype:
        fields = key_dtype(self._settings.signature_bytes)
        return np.dtype([("part", "<u4"), *((name, fields[name]) for name in fields.names or ())])

    def _file(self, kind: str, number: int) -> epath.Path:
        digest = survey(self.job).rule_digest(self.job, self.rule + 1)
        return self.job.work / f"across-{self.rule}-{digest}" / f"{kind}-{number:06d}"

    def spread(self, group: int) -> None:
        """Sorts the keys of a group of parts by their buckets."""
        target = self._file("spread", group)
        if storage.exists(target):
            return
        parts = survey(self.job)
        first, stop = parts.groups[group]
        alive = alive_pairs(self.job, self.rule, group)
        tables = []
        for part in range(first, stop):
            with damage_named(parts.file(part)):
                keys = PartReader(parts.file(part)).keys(self.rule, self._settings.signature_bytes)
            keys = keys[alive[part - first][keys["index"]]]
            table = np.zeros(len(keys), self._dtype)
            table["part"] = part
            for name in keys.dtype.names or ():
                table[name] = keys[name]
            tables.append(table)
        rows = np.concatenate(tables)
        buckets = parts.buckets[self.rule]
        bucket = _bucket(rows, buckets)
        order = np.argsort(bucket, kind="stable")
        write_slices(target, rows[order], np.searchsorted(bucket[order], np.arange(buckets + 1)))

    def compare(self, bucket: int) -> None:
        """Finds the pairs of a bucket for which there is a better pair, sorted by part."""
        target = self._file("bucket", bucket)
        if storage.exists(target):
            return
        groups = survey(self.job).groups
        files = [self._file("spread", number) for number in range(len(groups))]
        tables = parts_lib.each(lambda file: _slice(file, bucket, self._dtype), files)
        dropped = dropped_of(np.concatenate(tables), self._settings.similar)
        starts = [first for first, _ in groups]
        edges = np.searchsorted(dropped["part"], [*starts, groups[-1][1]])
        write_slices(target, dropped, edges)

    def gather(self, group: int) -> None:
        """Collects the verdicts on a group of parts from all buckets: which pairs are left, and which are dropped."""
        target = self._file("verdict", group)
        if storage.exists(target):
            return
        parts = survey(self.job)
        first, stop = parts.groups[group]
        files = [self._file("bucket", bucket) for bucket in range(parts.buckets[self.rule])]
        tables = parts_lib.each(lambda file: _slice(file, group, DROPPED), files)
        dropped = first_of_each(np.concatenate(tables))
        alive = alive_pairs(self.job, self.rule, group)
        starts = np.concatenate([[0], np.cumsum(parts.survivors[first:stop])])
        flat = np.zeros(int(starts[-1]), _ALIVE)
        flat["alive"] = np.concatenate([*alive, np.zeros(0, bool)])
        flat["alive"][starts[dropped["part"] - first] + dropped["index"]] = False
        write_slices(self._file("dropped", group), dropped, np.array([0, len(dropped)]))
        write_slices(target, flat, starts)

    def alive(self, group: int, first: int, stop: int) -> list[np.ndarray]:
        """For some consecutive parts of a group, bool [survivors]: whether a pair is left after this rule."""
        start, _ = survey(self.job).groups[group]
        target = self._file("verdict", group)
        with damage_named(target):
            return [rows["alive"] for rows in read_slices(target, first - start, stop - start, _ALIVE)]

    def dropped(self, group: int) -> np.ndarray:
        """The pairs of a group that this rule drops, in order, and a better one of each, [N] of `DROPPED`."""
        return _slice(self._file("dropped", group), 0, DROPPED)


def _slice(file: epath.Path, number: int, dtype: np.dtype) -> np.ndarray:
    with damage_named(file):
        return read_slice(file, number, dtype)


def alive_pairs(job: Job, rules: int, group: int, first: int = 0, stop: int | None = None) -> list[np.ndarray]:
    """For each part of a group, bool [survivors]: whether a pair is left after the first rules across pairs.

    Args:
      job: of the run.
      rules: how many rules across pairs.
      group: its number.
      first: leaves out parts before this one.
      stop: leaves out this part and later ones; None for no limit.
    """
    parts = survey(job)
    start, end = parts.groups[group]
    first = max(first, start)
    stop = end if stop is None else min(stop, end)
    if rules:
        return Shuffle(job, rules - 1).alive(group, first, stop)
    return [np.ones(count, bool) for count in parts.survivors[first:stop]]


def alive_counts(job: Job, rules: int) -> list[int]:
    """How many pairs of each part are left after the first rules across pairs."""
    groups = range(len(survey(job).groups))
    by_group = parts_lib.each(lambda group: [int(alive.sum()) for alive in alive_pairs(job, rules, group)], groups)
    return [count for counts in by_group for count in counts]


def _bucket(rows: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each key; equal keys have equal buckets."""
    mixed = (rows["high"] ^ (rows["low"] * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
    return (mixed >> np.uint64(32)) % np.uint64(buckets)


def dropped_of(rows: np.ndarray, similar: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The pairs that share a key with a better pair and are similar to it.

    Args:
      rows: keys of pairs in any order.
      similar: of the rule (`AcrossRule.similar`).

    Returns:
      [N] of `DROPPED`, sorted; each pair once, with the first of the better ones.
    """
    rows = rows[np.lexsort((rows["index"], rows["part"], ~rows["rank"], rows["low"], rows["high"]))]
    same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    starts = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(rows)]])
    if not len(rows):
        return np.zeros(0, DROPPED)
    best = np.repeat(starts[:-1], np.diff(starts))  # the best pair with the same key
    if rows["signature"].shape[1] == 0:
        losers = np.flatnonzero(best != np.arange(len(rows)))
        return first_of_each(_verdicts(rows, losers, best[losers]))
    losers_of = []
    better_of = []
    for start, stop in itertools.pairwise(starts):
        for loser, better in _similar_pairs(rows["signature"][start:stop], similar) if stop - start > 1 else ():
            losers_of.append(start + loser)
            better_of.append(start + better)
    return first_of_each(_verdicts(rows, np.array(losers_of, int), np.array(better_of, int)))


def _similar_pairs(
    signatures: np.ndarray, similar: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[tuple[int, int]]:
    """(loser, better) of pairs with one key, given from the best to the worst. Equal signatures are compared once."""
    first_with: dict[bytes, int] = {}
    distinct: list[int] = []
    pairs = []
    for number, signature in enumerate(signatures):
        twin = first_with.setdefault(signature.tobytes(), number)
        if twin != number:
            pairs.append((number, twin))
            continue
        if distinct:
            alike = np.flatnonzero(similar(signature, signatures[distinct]))
            if len(alike):
                pairs.append((number, distinct[alike[0]]))
        if len(distinct) < _COMPARED:
            distinct.append(number)
    return pairs


def _verdicts(rows: np.ndarray, losers: np.ndarray, better: np.ndarray) -> np.ndarray:
    dropped = np.zeros(len(losers), DROPPED)
    for name in ("part", "index"):
        dropped[name] = rows[name][losers]
        dropped[f"by_{name}"] = rows[name][better]
    return dropped


def first_of_each(dropped: np.ndarray) -> np.ndarray:
    """Verdicts sorted by pair; of several verdicts on one pair the first in the corpus' order of the better pair."""
    dropped = np.sort(dropped, order=("part", "index", "by_part", "by_index"))
    if not len(dropped):
        return dropped
    repeated = (dropped["part"][1:] == dropped["part"][:-1]) & (dropped["index"][1:] == dropped["index"][:-1])
    return dropped[np.concatenate([[True], ~repeated])]
