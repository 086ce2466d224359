"""The files of a finished output next to its shards: manifests, the rows that failed, examples for the report.

<output>/<task>/           a record folder per task (qwenvl_jax.data.record_format)
<output>/manifest.json     counts per rule, rows that failed by reason, licence, inputs, shards; written last
<output>/failed.jsonl      {"file", "row", "id", "reason", "detail"} of each row that failed
<output>/report/           decontaminated.jsonl: {"rule", "reason", "file", "row", "id", "evidence"} of each pair close
                           to evaluation data, if the recipe has that rule
<output>/samples/          dropped.jsonl and kept.jsonl, see `samples`
<output>/report.html       all of this on one page (`data_pipelines.report`)
"""

from __future__ import annotations

import collections
import heapq
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build import samples
from data_pipelines.build.across_pairs import Shuffle, alive_pairs, survey
from data_pipelines.build.clean_part import COMPOSE
from data_pipelines.build.job import Job, versions
from data_pipelines.build.part_files import PartReader, damage_named
from data_pipelines.build.parts import InputFile
from data_pipelines.build.shards import (
    building_folder,
    kept_count,
    kept_entries,
    plan_shards,
    record_split,
    written_shards,
)
from data_pipelines.clean.rule import RuleCounts, new_counts
from data_pipelines.report.files import DECONTAMINATED, has_decontamination
from data_pipelines.report.page import REPORT, write_report
from qwenvl_jax.data.readers.record_folder import read_manifest
from qwenvl_jax.data.record_writer import Shard, write_manifest
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage

MANIFEST = "manifest.json"
FAILED = "failed.jsonl"
VERSION = 1


def finish(job: Job, inputs: Mapping[str, InputFile]) -> dict[str, Any]:
    """Completes the folder of the shards, all of which are written, and returns its manifest."""
    folder = building_folder(job)
    shards, tallies = written_shards(job, plan_shards(job))
    _write_lines(folder / FAILED, _rows_of(job, "failed"))
    if has_decontamination(job.as_json()):
        _write_lines(folder / DECONTAMINATED, _rows_of(job, "evidence"))
    _write_lines(folder / "samples" / "dropped.jsonl", _dropped_examples(job))
    _write_lines(folder / "samples" / "kept.jsonl", _kept_examples(job))
    for task, members in shards.items():
        if members:
            description = f"{job.corpus.name}, split {job.split}: {task}"
            write_manifest(
                folder / task, job.corpus.name, members, description=description, extra={"job": job.digest()}
            )
    manifest = {**_manifest(job, inputs, folder, shards), "tallies": tallies}
    write_report(folder, manifest)
    _remove_leftovers(folder, shards)
    artifacts.write_json(folder / MANIFEST, manifest)
    return artifacts.read_json(folder / MANIFEST)


def _manifest(
    job: Job, inputs: Mapping[str, InputFile], folder: epath.Path, shards: Mapping[str, list[Shard]]
) -> dict[str, Any]:
    rows, failed, counts = _totals(job)
    counts |= _across_counts(job)
    split = record_split(job)
    return {
        "version": VERSION,
        "digest": job.digest(),
        "corpus": job.corpus.name,
        "split": job.split,
        "license": job.corpus.license,
        "home_page": job.corpus.home_page,
        "rows": rows,
        "failed": {"rows": failed.total(), "reasons": dict(sorted(failed.items()))},
        "rules": [{"rule": name, **each.as_json()} for name, each in counts.items()],
        "kept": kept_count(job),
        "tasks": {task: read_manifest(folder / task)["splits"][split] for task, members in shards.items() if members},
        "inputs": {file: each.content for file, each in inputs.items()},
        "job": job.as_json(),
        "versions": versions(),
    }


def _totals(job: Job) -> tuple[int, collections.Counter[str], dict[str, RuleCounts]]:
    """Rows, rows that failed by reason, and the counts of all rules for pairs, over all parts."""
    counts = {name: RuleCounts() for name in (*new_counts(job.recipe), COMPOSE)}
    rows = 0
    failed: collections.Counter[str] = collections.Counter()
    for reader in _readers(job):
        rows += reader.footer["rows"]
        failed.update(reader.footer["reasons"])
        for name, values in reader.footer["counts"].items():
            counts[name].add(RuleCounts.from_json(values))
    return rows, failed, counts


def _across_counts(job: Job) -> dict[str, RuleCounts]:
    counts = {}
    groups = range(len(survey(job).groups))
    for number, rule in enumerate(job.across):
        seen = sum(int(alive.sum()) for group in groups for alive in alive_pairs(job, number, group))
        dropped = sum(len(Shuffle(job, number).dropped(group)) for group in groups)
        reasons = collections.Counter({rule.reason: dropped} if dropped else {})
        counts[rule.name] = RuleCounts(seen=seen, dropped=reasons)
    return counts


def _readers(job: Job) -> Iterator[PartReader]:
    for file in survey(job).files:
        with damage_named(file):
            yield PartReader(file)


def _rows_of(job: Job, section: str) -> Iterator[dict[str, Any]]:
    """The rows of a section of all parts, in the order of files and of rows in a file."""
    parts = parts_lib.load_parts(job)
    by_file = itertools.groupby(zip(parts, _readers(job), strict=True), lambda each: each[0].file)
    for _, strides in by_file:
        lists = [reader.lines(section) for _, reader in strides]
        yield from heapq.merge(*lists, key=operator.itemgetter("row"))


def _dropped_examples(job: Job) -> Iterator[dict[str, Any]]:
    """The first pairs, in the order of the corpus, that each rule dropped for each reason; rules in their order."""
    examples: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in (*new_counts(job.recipe), COMPOSE)}
    for reader in _readers(job):
        drops = {name: counts["dropped"] for name, counts in reader.footer["counts"].items()}
        reasons = [examples[name].setdefault(reason, []) for name, dropped in drops.items() for reason in dropped]
        if all(len(kept) == samples.PER_REASON for kept in reasons):
            continue  # nothing of this part would be shown
        for example in reader.lines("samples"):
            kept = examples[example["rule"]][example["reason"]]
            if len(kept) < samples.PER_REASON:
                kept.append(example)
    for by_reason in examples.values():
        for reason in sorted(by_reason):
            yield from by_reason[reason]
    for number in range(len(job.across)):
        yield from itertools.islice(_across_examples(job, number), samples.PER_REASON)


def _across_examples(job: Job, rule: int) -> Iterator[dict[str, Any]]:
    head = {"rule": job.across[rule].name, "reason": job.across[rule].reason}
    for group in range(len(survey(job).groups)):
        for verdict in Shuffle(job, rule).dropped(group):
            part, index, by_part, by_index = (int(verdict[name]) for name in ("part", "index", "by_part", "by_index"))
            better = {**_example(job, by_part, by_index), **_measured(job, rule, (part, index), (by_part, by_index))}
            yield {**head, **_example(job, part, index), "evidence": [better]}


def _measured(job: Job, rule: int, pair: tuple[int, int], better: tuple[int, int]) -> dict[str, float]:
    """How near two pairs are by a rule across pairs, if it compares signatures. Each is named by part and index."""
    if not job.across[rule].signature_bytes:
        return {}
    return job.across[rule].nearness(_signature(job, rule, *pair), _signature(job, rule, *better))


def _signature(job: Job, rule: int, part: int, index: int) -> np.ndarray:
    file = survey(job).files[part]
    with damage_named(file):
        keys = PartReader(file).keys(rule, job.across[rule].signature_bytes)
    return keys["signature"][np.searchsorted(keys["index"], index)]


def _example(job: Job, part: int, index: int) -> dict[str, Any]:
    records, facts = _survivor(job, part, index)
    record = next(iter(records.values()))
    encoded = record.images[0] if record.images else b""
    return {**facts, "id": record.id, **samples.thumbnail(encoded, samples.DROPPED_SIDE)}


def _survivor(job: Job, part: int, index: int) -> tuple[dict[str, Record], dict[str, Any]]:
    file = survey(job).files[part]
    with damage_named(file):
        reader = PartReader(file)
        with reader.frames() as frames:
            return frames[reader.index()[index]]


def _kept_examples(job: Job) -> Iterator[dict[str, Any]]:
    """Survivors, evenly spread over the corpus, with the contents of their records."""
    total = kept_count(job)
    wanted = (
        set(np.linspace(0, total - 1, min(total, samples.SURVIVORS)).round().astype(int).tolist()) if total else set()
    )
    start = 0
    for part, entries in kept_entries(job):
        here = [number - start for number in sorted(wanted) if start <= number < start + len(entries)]
        start += len(entries)
        if not here:
            continue
        file = survey(job).files[part]
        with damage_named(file), PartReader(file).frames() as frames:
            for number in here:
                records, facts = frames[entries[number]]
                yield _kept_example(records, facts)


def _kept_example(records: Mapping[str, Record], facts: Mapping[str, Any]) -> dict[str, Any]:
    first = next(iter(records.values()))
    contents = {
        task: {"id": record.id, "language": record.language, "license": record.license, "content": record.content}
        for task, record in records.items()
    }
    shown = samples.thumbnail(first.images[0] if first.images else b"", samples.SURVIVOR_SIDE)
    return {**facts, "id": first.id, "records": contents, **shown}


def _write_lines(path: epath.Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines. They are ASCII, so that a text with half a surrogate pair can be written."""
    with storage.local_output(path) as temporary, temporary.open("w") as file:
        for value in values:
            file.write(json.dumps(value, sort_keys=True) + "\n")


def _remove_leftovers(folder: epath.Path, shards: Mapping[str, list[Shard]]) -> None:
    """Removes what killed runs left next to the shards: temporary files."""
    expected = {FAILED, REPORT, DECONTAMINATED, "samples/dropped.jsonl", "samples/kept.jsonl"}
    for task, members in shards.items():
        if members:
            expected |= {f"{task}/{name}" for name in (MANIFEST, "dataset_info.json", "features.json")}
            expected |= {f"{task}/{shard.file}" for shard in members}
    for name in storage.files_below(folder):
        if name not in expected:
            storage.remove(folder / name)
