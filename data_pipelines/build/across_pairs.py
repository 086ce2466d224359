"""The steps of a rule across pairs: keys of the parts -> buckets of equal keys -> verdicts for the parts.

Two pairs that share a key meet in the bucket of that key, wherever they are in the corpus. Parts are taken in groups,
so that a bucket reads one slice per group and a group one slice per bucket, and memory holds one group or one bucket.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.job import Job, digest_of
from data_pipelines.build.part_files import PartReader, damage_named, key_dtype
from data_pipelines.build.slices import read_slice, write_slices
from data_pipelines.clean.across import AcrossRule
from qwenvl_jax.runtime import storage

_GROUP_BYTES = 64 << 20  # of keys
_GROUP_PARTS = 4096
_BUCKET_BYTES = 32 << 20
_COMPARED = 1000  # better pairs with the same key that a pair is compared with; the best come first

DROPPED = np.dtype([("part", "<u4"), ("index", "<u4"), ("by_part", "<u4"), ("by_index", "<u4")])
_ALIVE = np.dtype([("alive", "?")])


@dataclasses.dataclass(frozen=True)
class Survey:
    """The parts' files after the step `clean`.

    Attributes:
      files: of each part, in order.
      survivors: of each part.
      groups: (first, stop): consecutive parts whose keys fit into memory together.
      buckets: of each rule across pairs.
      digest: of the contents of all files.
    """

    files: tuple[epath.Path, ...]
    survivors: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    buckets: tuple[int, ...]
    digest: str

    def rule_digest(self, job: Job, rules: int) -> str:
        """The digest of everything that the verdicts of the first rules depend on."""
        return digest_of([self.digest, [rule.as_json() for rule in job.across[:rules]]])


@functools.lru_cache(maxsize=1)
def survey(job: Job) -> Survey:
    """Reads the footers of all parts; each process does so once per run."""
    parts = parts_lib.load_parts(job)
    newest = parts_lib.attempts(job)
    files = [parts_lib.part_file(job, part, newest[part.digest]) for part in parts]
    footers = parts_lib.each(_footer, files)
    sizes = [[footer["sections"][f"keys-{number}"][1] for number in range(len(job.across))] for footer in footers]
    buckets = []
    for number in range(len(job.across)):
        buckets.append(max(1, -(-sum(size[number] for size in sizes) // _BUCKET_BYTES)))
    return Survey(
        tuple(files),
        tuple(footer["survivors"] for footer in footers),
        tuple(_groups([max([8 * footer["survivors"], *size]) for footer, size in zip(footers, sizes, strict=True)])),
        tuple(buckets),
        digest_of([footer["content"] for footer in footers]),
    )


def _footer(file: epath.Path) -> dict[str, Any]:
    with damage_named(file):
        return PartReader(file).footer


def _groups(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive parts of at most `_GROUP_BYTES` together, at least one."""
    groups = []
    first = 0
    total = 0
    for number, size in enumerate(sizes):
        if number > first and (total + size > _GROUP_BYTES or number - first >= _GROUP_PARTS):
            groups.append((first, number))
            first = number
            total = 0
        total += size
    return [*groups, (first, len(sizes))] if sizes else []


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
            with damage_named(parts.files[part]):
                keys = PartReader(parts.files[part]).keys(self.rule, self._settings.signature_bytes)
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
        tables = []
        for number in range(len(groups)):
            with damage_named(self._file("spread", number)):
                tables.append(read_slice(self._file("spread", number), bucket, self._dtype))
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
        tables = []
        for bucket in range(parts.buckets[self.rule]):
            with damage_named(self._file("bucket", bucket)):
                tables.append(read_slice(self._file("bucket", bucket), group, DROPPED))
        dropped = first_of_each(np.concatenate(tables))
        alive = alive_pairs(self.job, self.rule, group)
        starts = np.concatenate([[0], np.cumsum(parts.survivors[first:stop])])
        flat = np.zeros(int(starts[-1]), _ALIVE)
        flat["alive"] = np.concatenate([*alive, np.zeros(0, bool)])
        flat["alive"][starts[dropped["part"] - first] + dropped["index"]] = False
        write_slices(self._file("dropped", group), dropped, np.array([0, len(dropped)]))
        write_slices(target, flat, starts)

    def alive(self, group: int) -> list[np.ndarray]:
        """For each part of a group, bool [survivors]: whether a pair is left after this rule."""
        first, stop = survey(self.job).groups[group]
        target = self._file("verdict", group)
        with damage_named(target):
            return [read_slice(target, part - first, _ALIVE)["alive"] for part in range(first, stop)]

    def dropped(self, group: int) -> np.ndarray:
        """The pairs of a group that this rule drops, in order, and a better one of each, [N] of `DROPPED`."""
        target = self._file("dropped", group)
        with damage_named(target):
            return read_slice(target, 0, DROPPED)


def alive_pairs(job: Job, rules: int, group: int) -> list[np.ndarray]:
    """For each part of a group, bool [survivors]: whether a pair is left after the first rules across pairs."""
    if rules:
        return Shuffle(job, rules - 1).alive(group)
    parts = survey(job)
    first, stop = parts.groups[group]
    return [np.ones(count, bool) for count in parts.survivors[first:stop]]


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
