"""The last steps: the survivors' records into shards of known content.

The sizes of all records are known before one is written, so a shard is a range of survivors that is a function of these
sizes alone, and any worker can write any shard.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.across_pairs import alive_pairs
from data_pipelines.build.histograms import Histograms, merged
from data_pipelines.build.job import Job, digest_of
from data_pipelines.build.part_files import PartReader, damage_named
from data_pipelines.build.slices import read_slices, write_slices
from data_pipelines.build.survey import survey
from qwenvl_jax.data.record_writer import Shard, write_shard
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, file_errors_of

_READ_AHEAD = 32  # files that are read at once
_NOTES = 1000  # of shards that are read at once
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


def measure_group(job: Job, group: int) -> None:
    """Writes the sizes of the records of a group of parts, 0 for those of pairs that a rule across pairs dropped."""
    target = _sizes_file(job, group)
    if storage.exists(target):
        return
    tables = [_no_sizes(job)]
    for _, kept, index in _kept(job, *survey(job).groups[group]):
        sizes = np.zeros(len(index), tables[0].dtype)
        sizes["sizes"] = index["sizes"] * kept[:, None]
        tables.append(sizes)
    write_slices(target, np.concatenate(tables), np.cumsum([0, *map(len, tables[1:])]))


def _no_sizes(job: Job) -> np.ndarray:
    return np.zeros(0, np.dtype([("sizes", "<u8", (len(job.corpus.tasks),))]))


def _sizes_file(job: Job, group: int) -> epath.Path:
    return shards_folder(job) / "sizes" / f"{group:06d}"


def _sizes(job: Job) -> Iterator[tuple[int, np.ndarray]]:
    """(part, int64 [survivors, tasks] with the sizes of its records) of all parts."""

    def read(group: int) -> list[np.ndarray]:
        file = _sizes_file(job, group)
        with damage_named(file):
            return read_slices(file, 0, groups[group][1] - groups[group][0], _no_sizes(job).dtype)

    groups = survey(job).groups
    part = 0
    for start in range(0, len(groups), _READ_AHEAD):
        for tables in parts_lib.each(read, range(len(groups))[start : start + _READ_AHEAD]):
            for table in tables:
                yield part, table["sizes"].astype(np.int64)
                part += 1


def plan_shards(job: Job) -> list[ShardRange]:
    """The shards of all tasks. The first call of a run makes the plan; later ones read it."""
    target = shards_folder(job) / "plan.json"
    if not storage.exists(target):
        plan = [dataclasses.astuple(shard) for shard in _plan(job)]
        storage.write_bytes(target, json.dumps(plan).encode())
    shards: list[Any] = artifacts.read_json(target)
    return [ShardRange(task, index, count, tuple(first), tuple(stop)) for task, index, count, first, stop in shards]


def _plan(job: Job) -> list[ShardRange]:
    """Each shard ends with the record that brings it to `bytes_per_shard`, or with the last one."""
    tasks = job.corpus.tasks
    first: list[Position | None] = [None] * len(tasks)
    filled = [0] * len(tasks)
    ranges: list[list[tuple[Position, Position]]] = [[] for _ in tasks]
    last: list[Position] = [(0, 0)] * len(tasks)
    for part, of_tasks in _sizes(job):
        for task in range(len(tasks)):
            sizes = of_tasks[:, task]
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


def _kept(job: Job, first: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(part, bool [survivors] whether the pair is left, index of the part) of consecutive parts."""
    parts = survey(job)
    for group, (start, end) in enumerate(parts.groups):
        wanted = range(max(first, start), min(stop, end))
        if not wanted:
            continue
        alive = alive_pairs(job, len(job.across), group, first, stop)
        for chunk in (wanted[at : at + _READ_AHEAD] for at in range(0, len(wanted), _READ_AHEAD)):
            indexes = parts_lib.each(_index, [parts.file(part) for part in chunk])
            for part, index in zip(chunk, indexes, strict=True):
                yield part, alive[part - wanted[0]], index


def _index(file: epath.Path) -> np.ndarray:
    with damage_named(file):
        return PartReader(file).index()


def kept_entries(job: Job, part: int) -> np.ndarray:
    """The entries of the index of a part that are left after all rules."""
    ((_, kept, index),) = _kept(job, part, part + 1)
    return index[kept]


def write_range(job: Job, shard: ShardRange) -> None:
    """Writes one shard and then the note with its entry of the manifest and its histograms, unless both are there."""
    note = _note(job, shard)
    folder = building_folder(job) / shard.task
    if storage.exists(note) and _is_there(folder, Shard(**artifacts.read_json(note)["shard"])):
        return
    histograms = Histograms()
    with file_errors_of(folder):
        records = histograms.counted(_records(job, shard))
        entry = write_shard(folder, job.corpus.name, record_split(job), shard.index, shard.count, records)
    artifacts.write_json(note, {"shard": dataclasses.asdict(entry), "histograms": histograms.as_json()})


def record_split(job: Job) -> str:
    """The split's name in record folders: lower-case letters, digits and _."""
    return job.split.lower().replace("-", "_")


def _records(job: Job, shard: ShardRange) -> Iterator[Record]:
    task = job.corpus.tasks.index(shard.task)
    parts = survey(job)
    for part, kept, index in _kept(job, shard.first[0], shard.stop[0] + 1):
        begin = shard.first[1] if part == shard.first[0] else 0
        end = shard.stop[1] if part == shard.stop[0] else len(index)
        wanted = np.flatnonzero(kept[begin:end] & (index["sizes"][begin:end, task] > 0)) + begin
        with damage_named(parts.file(part)), PartReader(parts.file(part)).frames() as frames:
            for number in wanted:
                records, _ = frames[index[number]]
                yield records[shard.task]


def _note(job: Job, shard: ShardRange) -> epath.Path:
    return shards_folder(job) / "notes" / f"{shard.task}-{shard.index:06d}-of-{shard.count:06d}.json"


def written_shards(job: Job, ranges: list[ShardRange]) -> tuple[dict[str, list[Shard]], dict[str, Any]]:
    """The manifest entries of all shards, and the sums of their histograms for tasks with records; both by task.

    Raises:
      UserError: if a shard was removed.
    """
    shards: dict[str, list[Shard]] = {task: [] for task in job.corpus.tasks}
    histograms: dict[str, Any] = {}
    for start in range(0, len(ranges), _NOTES):
        chunk = ranges[start : start + _NOTES]
        notes = parts_lib.each(lambda shard: artifacts.read_json(_note(job, shard)), chunk)
        for task in job.corpus.tasks:
            here = [note for shard, note in zip(chunk, notes, strict=True) if shard.task == task]
            entries = [Shard(**note["shard"]) for note in here]
            _check_there(building_folder(job) / task, entries)
            shards[task] += entries
            if here:
                earlier = [histograms[task]] if task in histograms else []
                histograms[task] = merged([*earlier, *(note["histograms"] for note in here)])
    return shards, histograms


def _check_there(folder: epath.Path, entries: list[Shard]) -> None:
    sizes = storage.sizes_of(folder, [entry.file for entry in entries])
    for entry in entries:
        if sizes.get(entry.file) != entry.bytes:
            raise UserError(f"{folder / entry.file} was removed; run the same command again")


def _is_there(folder: epath.Path, entry: Shard) -> bool:
    return storage.sizes_of(folder, [entry.file]) == {entry.file: entry.bytes}
