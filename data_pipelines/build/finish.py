"""The files of a finished output next to its shards: manifests, the rows that failed, examples for the report.

<output>/<task>/           a record folder per task (qwenvl_jax.data.record_format)
<output>/manifest.json     counts per rule, rows that failed by reason, licence, inputs, shards; written last
<output>/failed.jsonl      {"file", "row", "id", "reason", "detail"} of each row that failed
<output>/report/           decontaminated.jsonl: {"rule", "reason", "file", "row", "id", "evidence"} of each pair close
                           to evaluation data, if the recipe has that rule
<output>/examples/         dropped.jsonl and kept.jsonl, see `examples`
<output>/report.html       all of this on one page (`data_pipelines.report`)
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.build import examples as examples_lib
from data_pipelines.build import parts as parts_lib
from data_pipelines.build.across_pairs import Shuffle, alive_counts
from data_pipelines.build.clean_part import COMPOSE, DOWNLOAD
from data_pipelines.build.job import Job, versions
from data_pipelines.build.json_lines import write_lines
from data_pipelines.build.part_files import PartReader, damage_named
from data_pipelines.build.parts import InputFile
from data_pipelines.build.shards import (
    building_folder,
    kept_entries,
    plan_shards,
    record_split,
    written_shards,
)
from data_pipelines.build.survey import dropped_examples, listed_rows, survey, totals
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
    shards, histograms = written_shards(job, plan_shards(job))
    write_lines(folder / FAILED, listed_rows(job, "failed"))
    if has_decontamination(job.as_json()):
        write_lines(folder / DECONTAMINATED, listed_rows(job, "evidence"))
    write_lines(folder / "examples" / "dropped.jsonl", _dropped_examples(job))
    write_lines(folder / "examples" / "kept.jsonl", _kept_examples(job))
    for task, members in shards.items():
        if members:
            description = f"{job.corpus.name}, split {job.split}: {task}"
            write_manifest(
                folder / task, job.corpus.name, members, description=description, extra={"job": job.digest()}
            )
    manifest = {**_manifest(job, inputs, folder, shards), "histograms": histograms}
    write_report(folder, manifest)
    _remove_leftovers(folder, shards)
    artifacts.write_json(folder / MANIFEST, manifest)
    return artifacts.read_json(folder / MANIFEST)


def _manifest(
    job: Job, inputs: Mapping[str, InputFile], folder: epath.Path, shards: Mapping[str, list[Shard]]
) -> dict[str, Any]:
    sums = totals(job)
    none = {name: RuleCounts() for name in (DOWNLOAD, *new_counts(job.recipe), COMPOSE)}
    counts = {**none, **sums.counts, **_across_counts(job)}
    if not counts[DOWNLOAD].dropped:
        del counts[DOWNLOAD]
    split = record_split(job)
    return {
        "version": VERSION,
        "digest": job.digest(),
        "corpus": job.corpus.name,
        "split": job.split,
        "license": job.corpus.license,
        "home_page": job.corpus.home_page,
        "rows": sums.rows,
        "failed": {"rows": sums.failed.total(), "reasons": dict(sorted(sums.failed.items()))},
        "rules": [{"rule": name, **each.as_json()} for name, each in counts.items()],
        "kept": sum(alive_counts(job, len(job.across))),
        "tasks": {task: read_manifest(folder / task)["splits"][split] for task, members in shards.items() if members},
        "inputs": {file: each.content for file, each in inputs.items()},
        "job": job.as_json(),
        "versions": versions(),
    }


def _across_counts(job: Job) -> dict[str, RuleCounts]:
    counts = {}
    groups = range(len(survey(job).groups))
    for number, rule in enumerate(job.across):
        dropped = sum(map(len, parts_lib.each(Shuffle(job, number).dropped, groups)))
        reasons = collections.Counter({rule.reason: dropped} if dropped else {})
        counts[rule.name] = RuleCounts(seen=sum(alive_counts(job, number)), dropped=reasons)
    return counts


def _dropped_examples(job: Job) -> Iterator[dict[str, Any]]:
    """The first pairs, in the order of the corpus, that each rule dropped for each reason; rules in their order."""
    examples = dropped_examples(job)
    for name in (*new_counts(job.recipe), COMPOSE):
        for _, kept in sorted(examples.get(name, {}).items()):
            yield from kept
    for number in range(len(job.across)):
        yield from itertools.islice(_across_examples(job, number), examples_lib.PER_REASON)


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
    file = survey(job).file(part)
    with damage_named(file):
        keys = PartReader(file).keys(rule, job.across[rule].signature_bytes)
    return keys["signature"][np.searchsorted(keys["index"], index)]


def _example(job: Job, part: int, index: int) -> dict[str, Any]:
    records, facts = _survivor(job, part, index)
    record = next(iter(records.values()))
    encoded = record.images[0] if record.images else b""
    return {**facts, "id": record.id, **examples_lib.thumbnail(encoded, examples_lib.DROPPED_SIDE)}


def _survivor(job: Job, part: int, index: int) -> tuple[dict[str, Record], dict[str, Any]]:
    file = survey(job).file(part)
    with damage_named(file):
        reader = PartReader(file)
        with reader.frames() as frames:
            return frames[reader.index()[index]]


def _kept_examples(job: Job) -> Iterator[dict[str, Any]]:
    """Kept pairs, evenly spread over the corpus, with the contents of their records."""
    counts = alive_counts(job, len(job.across))
    total = sum(counts)
    spread = np.linspace(0, max(0, total - 1), min(total, examples_lib.KEPT)).round().astype(int)
    starts = np.cumsum([0, *counts])
    in_parts = np.searchsorted(starts, spread, side="right") - 1
    for part, numbers in itertools.groupby(zip(in_parts, spread, strict=True), lambda each: int(each[0])):
        entries = kept_entries(job, part)
        file = survey(job).file(part)
        with damage_named(file), PartReader(file).frames() as frames:
            for number in sorted({int(number - starts[part]) for _, number in numbers}):
                records, facts = frames[entries[number]]
                yield _kept_example(records, facts)


def _kept_example(records: Mapping[str, Record], facts: Mapping[str, Any]) -> dict[str, Any]:
    first = next(iter(records.values()))
    contents = {
        task: {"id": record.id, "language": record.language, "license": record.license, "content": record.content}
        for task, record in records.items()
    }
    shown = examples_lib.thumbnail(first.images[0] if first.images else b"", examples_lib.KEPT_SIDE)
    return {**facts, "id": first.id, "records": contents, **shown}


def _remove_leftovers(folder: epath.Path, shards: Mapping[str, list[Shard]]) -> None:
    """Removes what killed runs left next to the shards: temporary files."""
    expected = {FAILED, REPORT, DECONTAMINATED, "examples/dropped.jsonl", "examples/kept.jsonl"}
    for task, members in shards.items():
        if members:
            expected |= {f"{task}/{name}" for name in (MANIFEST, "dataset_info.json", "features.json")}
            expected |= {f"{task}/{shard.file}" for shard in members}
    for name in storage.files_below(folder):
        if name not in expected:
            storage.remove(folder / name)
