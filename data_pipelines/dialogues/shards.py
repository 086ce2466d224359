"""Writes the shards of a dialogue set, each by any worker, and its manifest."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.dialogues.compose import composed
from data_pipelines.dialogues.job import NAME, DialogueJob
from data_pipelines.dialogues.plan import planned_shards, shard_entries
from data_pipelines.pair import FailedRow
from qwenvl_jax.data.record_writer import Shard, write_manifest, write_shard
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, file_errors_of

FAILED = "failed.jsonl"
COUNTS = ("kinds", "ways", "corpora", "pictures", "turns")


def write_dialogues(job: DialogueJob, shard: int) -> None:
    """Writes one shard and then the note with its entry of the manifest, unless both are there."""
    note = _note(job, shard)
    if storage.exists(note) and _is_there(job, Shard(**artifacts.read_json(note)["shard"])):
        return
    count = len(list(planned_shards(job)))
    tallies: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in COUNTS}
    failed: list[dict[str, Any]] = []
    records = _records(job, shard, tallies, failed)
    with file_errors_of(job.building):
        entry = write_shard(job.building, NAME, "train", shard, count, records)
    counts = {name: dict(sorted(tally.items())) for name, tally in tallies.items()}
    artifacts.write_json(note, {"shard": dataclasses.asdict(entry), "counts": counts, "failed": failed})


def _records(
    job: DialogueJob, shard: int, tallies: dict[str, collections.Counter[str]], failed: list[dict[str, Any]]
) -> Iterator[Record]:
    for entry in shard_entries(job, shard):
        made = composed(job, entry)
        if isinstance(made, FailedRow):
            failed.append({"dialogue": entry.number, "way": entry.way, "reason": made.reason, "detail": made.detail})
            continue
        tallies["kinds"].update(made.kinds)
        tallies["ways"][entry.way] += 1
        tallies["corpora"].update(made.corpora)
        tallies["pictures"][str(len(made.record.images))] += 1
        turns: Any = made.record.content
        tallies["turns"][str(len(turns["turns"]))] += 1
        yield made.record


def finish(job: DialogueJob, skipped: dict[str, int]) -> dict[str, Any]:
    """Writes the failed dialogues and the manifest of the shards, which are all there.

    Raises:
      UserError: if no dialogue could be made, or a shard was removed.
    """
    totals: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in COUNTS}
    reasons: collections.Counter[str] = collections.Counter()
    shards: list[Shard] = []
    lines: list[str] = []
    for number in planned_shards(job):
        values = artifacts.read_json(_note(job, number))
        shard = Shard(**values["shard"])
        if not _is_there(job, shard):
            raise UserError(f"{job.building / shard.file} was removed; run the same command again")
        shards.append(shard)
        for name, total in totals.items():
            total.update(values["counts"][name])
        reasons.update(f"{row['way']}: {row['reason']}" for row in values["failed"])
        lines += [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in values["failed"]]
    if not sum(shard.records for shard in shards):
        worst = reasons.most_common(1)[0][0]
        raise UserError(f"no dialogue could be made, most often because of {worst!r}; correct that and run it again")
    for name in set(storage.names(job.building)) - {shard.file for shard in shards}:
        storage.remove(job.building / name)  # what killed runs were writing
    artifacts.write_text(job.building / FAILED, "".join(lines))
    extra = {
        "digest": job.digest(),
        "settings": job.as_json(),
        "dialogues": {name: dict(sorted(total.items())) for name, total in totals.items()},
        "failed": dict(sorted(reasons.items())),
        "skipped": dict(sorted(skipped.items())),
    }
    write_manifest(job.building, NAME, shards, description="Dialogues for supervised fine-tuning", extra=extra)
    manifest: dict[str, Any] = artifacts.read_json(job.building / "manifest.json")
    return manifest


def _note(job: DialogueJob, shard: int) -> epath.Path:
    return job.work / "notes" / f"{shard:06d}.json"


def _is_there(job: DialogueJob, shard: Shard) -> bool:
    return storage.sizes_of(job.building, [shard.file]) == {shard.file: shard.bytes}
