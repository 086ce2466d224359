"""The last step: the survivors' records into shards of known content.

The sizes of all records are known before one is written, so a shard is a range of survivors that is a function of these
sizes alone, and any worker can write any shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.across_pairs import alive_pairs, survey
from data_pipelines.build.job import Job, digest_of
from data_pipelines.build.part_files import PartReader, damage_named
from data_pipelines.build.tallies import Tally, merged
from qwenvl_jax.data.record_writer import Shard, write_shard
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, file_errors_of

_READ_AHEAD = 32  # parts whose indexes are read at once
Position = tuple[int, int]  # a part and a survivor of it


@dataclasses.dataclass(frozen=True)
class ShardRange:
    """One shard: number `index` of the `count` shards of a task, from the survivor `first` up to `stop`."""

    task: str
    index: int
    count: int
    first: Position
    stop: Position


def shards_folder(job: Job) -> epath.Path:
    """The folder for the shards of this job and these parts."""
    digest = digest_of([survey(job).rule_digest(job, len(job.across)), job.bytes_per_shard, job.digest()])
    return job.work / f"shards-{digest}"


def building_folder(job: Job) -> epath.Path:
    """The folder that becomes the output."""
    return shards_folder(job) / "output"


def plan_shards(job: Job) -> list[ShardRange]:
    """The shards of all tasks: each ends with the record that brings it to `bytes_per_shard`, or with the last one."""
    tasks = job.corpus.tasks
    first: list[Position | None] = [None] * len(tasks)
    filled = [0] * len(tasks)
    ranges: list[list[tuple[Position, Position]]] = [[] for _ in tasks]
    last: list[Position] = [(0, 0)] * len(tasks)
    for part, kept, index in _kept(job):
        for task in range(len(tasks)):
            sizes = np.where(kept, index["sizes"][:, task], 0).astype(np.int64)
            numbers = np.flatnonzero(sizes)
            ends = np.cumsum(sizes[numbers])
            at = 0
            while at < len(numbers):
                if first[task] is None:
                    first[task] = (part, int(numbers[at]))
                before = int(ends[at - 1]) if at else 0
                end = int(np.searchsorted(ends, before + job.bytes_per_shard - filled[task]))
                last[task] = (part, int(numbers[min(end, len(numbers) - 1)]) + 1)
                if end >= len(numbers):
                    filled[task] += int(ends[-1]) - before
                    break
                ranges[task].append((_set(first[task]), last[task]))
                first[task] = None
                filled[task] = 0
                at = end + 1
    for task in range(len(tasks)):
        if first[task] is not None:
            ranges[task].append((_set(first[task]), last[task]))
    return [
        ShardRange(name, number, len(ranges[task]), *limits)
        for task, name in enumerate(tasks)
        for number, limits in enumerate(ranges[task])
    ]


def _set(position: Position | None) -> Position:
    assert position is not None
    return position


def _kept(job: Job, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(part, bool [survivors] whether the pair is left, index of the part) of consecutive parts."""
    parts = survey(job)
    stop = len(parts.files) if stop is None else stop
    for group, (start, end) in enumerate(parts.groups):
        if end <= first or start >= stop:
            continue
        alive = alive_pairs(job, len(job.across), group)
        wanted = range(max(first, start), min(stop, end))
        for chunk in (wanted[at : at + _READ_AHEAD] for at in range(0, len(wanted), _READ_AHEAD)):
            indexes = parts_lib.each(_index, [parts.files[part] for part in chunk])
            for part, index in zip(chunk, indexes, strict=True):
                yield part, alive[part - start], index


def _index(file: epath.Path) -> np.ndarray:
    with damage_named(file):
        return PartReader(file).index()


def kept_count(job: Job) -> int:
    """How many pairs are left after all rules."""
    groups = range(len(survey(job).groups))
    return sum(int(alive.sum()) for group in groups for alive in alive_pairs(job, len(job.across), group))


def kept_entries(job: Job, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """(part, entries of the index that are left) of consecutive parts."""
    for part, kept, index in _kept(job, first, stop):
        yield part, index[kept]


def write_range(job: Job, shard: ShardRange) -> None:
    """Writes one shard and then the note with its entry of the manifest and its tally, unless both are there."""
    note = _note(job, shard)
    folder = building_folder(job) / shard.task
    if storage.exists(note) and _is_there(folder, Shard(**artifacts.read_json(note)["shard"])):
        return
    tally = Tally()
    with file_errors_of(folder):
        records = tally.counted(_records(job, shard))
        entry = write_shard(folder, job.corpus.name, record_split(job), shard.index, shard.count, records)
    artifacts.write_json(note, {"shard": dataclasses.asdict(entry), "tally": tally.as_json()})


def record_split(job: Job) -> str:
    """The split's name in record folders: lower-case letters, digits and _."""
    return job.split.lower().replace("-", "_")


def _records(job: Job, shard: ShardRange) -> Iterator[Record]:
    task = job.corpus.tasks.index(shard.task)
    files = survey(job).files
    for part, kept, index in _kept(job, shard.first[0], shard.stop[0] + 1):
        begin = shard.first[1] if part == shard.first[0] else 0
        end = shard.stop[1] if part == shard.stop[0] else len(index)
        wanted = np.flatnonzero(kept[begin:end] & (index["sizes"][begin:end, task] > 0)) + begin
        with damage_named(files[part]), PartReader(files[part]).frames() as frames:
            for number in wanted:
                records, _ = frames[index[number]]
                yield records[shard.task]


def _note(job: Job, shard: ShardRange) -> epath.Path:
    return shards_folder(job) / "notes" / f"{shard.task}-{shard.index:06d}-of-{shard.count:06d}.json"


def written_shards(job: Job, ranges: list[ShardRange]) -> tuple[dict[str, list[Shard]], dict[str, Any]]:
    """The manifest entries of all shards, and the sums of their tallies for tasks with records; both by task.

    Raises:
      UserError: if a shard was removed.
    """
    shards: dict[str, list[Shard]] = {task: [] for task in job.corpus.tasks}
    tallies: dict[str, Any] = {}
    for shard in ranges:
        note: dict[str, Any] = artifacts.read_json(_note(job, shard))
        entry = Shard(**note["shard"])
        folder = building_folder(job) / shard.task
        if not _is_there(folder, entry):
            raise UserError(f"{folder / entry.file} was removed; run the same command again")
        shards[shard.task].append(entry)
        earlier = [tallies[shard.task]] if shard.task in tallies else []
        tallies[shard.task] = merged([*earlier, note["tally"]])
    return shards, tallies


def _is_there(folder: epath.Path, entry: Shard) -> bool:
    return storage.sizes_of(folder, [entry.file]) == {entry.file: entry.bytes}
