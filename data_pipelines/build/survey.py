"""The survey: the facts about all parts that later steps need, collected once per run and not by every process.

    parts  ->  block-000000.json, failed-000000.jsonl, evidence-.., examples-.., ..  ->  survey.json

Blocks of parts are surveyed in parallel; then one worker joins them. All processes read `survey.json` alone, and the
end of the run reads the blocks. The files belong to one run: a part may be made again under its old name if a picture
has changed, so the next run looks at all parts again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import heapq
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.build import examples as examples_lib
from data_pipelines.build import parts as parts_lib
from data_pipelines.build.clean_part import DOWNLOAD
from data_pipelines.build.job import Job, digest_of
from data_pipelines.build.json_lines import read_lines, write_lines
from data_pipelines.build.part_files import PartReader, damage_named
from data_pipelines.build.parts import Part
from data_pipelines.clean.rule import RuleCounts
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

_GROUP_BYTES = 64 << 20  # of keys
_GROUP_PARTS = 4096
_BUCKET_BYTES = 32 << 20
_LISTED = ("failed", "evidence")  # sections whose rows are all listed in the output

# rule -> reason -> examples
_Examples = dict[str, dict[str, list[dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Survey:
    """The parts' files after the step `clean`.

    Attributes:
      folder: of the files.
      names: of the file of each part, in order.
      survivors: of each part.
      groups: (first, stop): consecutive parts whose keys fit into memory together.
      buckets: of each rule across pairs.
      digest: of the contents of all files.
    """

    folder: epath.Path
    names: tuple[str, ...]
    survivors: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    buckets: tuple[int, ...]
    digest: str

    def file(self, part: int) -> epath.Path:
        """The file of a part."""
        return self.folder / self.names[part]

    def rule_digest(self, job: Job, rules: int) -> str:
        """The digest of everything that the verdicts of the first rules depend on."""
        return digest_of([self.digest, [rule.as_json() for rule in job.across[:rules]]])


@dataclasses.dataclass
class Totals:
    """Sums over parts: rows, rows that failed by reason, and the counts of every rule for pairs."""

    rows: int = 0
    failed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    counts: dict[str, RuleCounts] = dataclasses.field(default_factory=dict)

    def add(self, rows: int, failed: Mapping[str, int], counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds the numbers of some parts, as JSON has them."""
        self.rows += rows
        self.failed.update(failed)
        for name, values in counts.items():
            self.counts.setdefault(name, RuleCounts()).add(RuleCounts.from_json(values))


def survey_block(job: Job, number: int) -> None:
    """Reads the footers of a block of parts, and collects their failed rows and examples."""
    if storage.exists(_block(job, number)):
        return
    parts = parts_lib.load_block(job, number)
    readers = parts_lib.each(functools.partial(_reader, job), parts)
    totals = Totals()
    for reader in readers:
        totals.add(*(reader.footer[key] for key in ("rows", "reasons", "counts")))
    listed = [section for section in _LISTED if any(reader.footer["sections"][section][1] for reader in readers)]
    for section in listed:
        write_lines(_lines(job, section, number), _rows_in_order(parts, readers, section))
    write_lines(_lines(job, "examples", number), _in_order(_first_examples(readers)))
    note = {
        "parts": [_facts(job, reader) for reader in readers],
        "rows": totals.rows,
        "failed": totals.failed,
        "listed": listed,
        "counts": {name: each.as_json() for name, each in totals.counts.items()},
    }
    storage.write_bytes(_block(job, number), json.dumps(note).encode())


def join_blocks(job: Job) -> None:
    """Writes the survey of all parts from those of the blocks."""
    if storage.exists(_joined(job)):
        return
    facts = [facts for note in _notes(job) for facts in note["parts"]]
    names, survivors, keys, contents = ([each[column] for each in facts] for column in range(4))
    buckets = [max(1, -(-sum(column) // _BUCKET_BYTES)) for column in zip(*keys, strict=True)]
    values = {
        "names": names,
        "survivors": survivors,
        "groups": _groups([max([8 * count, *sizes]) for count, sizes in zip(survivors, keys, strict=True)]),
        "buckets": buckets or [1] * len(job.across),
        "digest": digest_of(contents),
    }
    storage.write_bytes(_joined(job), json.dumps(values).encode())


@functools.lru_cache(maxsize=1)
def survey(job: Job) -> Survey:
    """The survey of this run. Each process reads it once."""
    values: dict[str, Any] = artifacts.read_json(_joined(job))
    groups = tuple((first, stop) for first, stop in values.pop("groups"))
    digest = values.pop("digest")
    columns = {name: tuple(column) for name, column in values.items()}
    return Survey(folder=parts_lib.clean_folder(job), groups=groups, digest=digest, **columns)


def totals(job: Job) -> Totals:
    """The sums over all parts."""
    total = Totals()
    for note in _notes(job):
        total.add(*(note[key] for key in ("rows", "failed", "counts")))
    return total


def listed_rows(job: Job, section: str) -> Iterator[dict[str, Any]]:
    """The rows of one of the sections `_LISTED` of all parts, in the order of files and of rows in a file."""
    for number in parts_lib.block_numbers(job):
        if section in _note(job, number)["listed"]:
            yield from read_lines(_lines(job, section, number))


def dropped_examples(job: Job) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The first pairs, in the order of the corpus, that each rule for pairs dropped for each reason."""
    examples: _Examples = {}
    for number, note in enumerate(_notes(job)):
        if _are_wanted(examples, note["counts"]):
            _add_examples(examples, read_lines(_lines(job, "examples", number)))
    return examples


def _notes(job: Job) -> list[dict[str, Any]]:
    return parts_lib.each(functools.partial(_note, job), parts_lib.block_numbers(job))


def _note(job: Job, number: int) -> dict[str, Any]:
    note: dict[str, Any] = artifacts.read_json(_block(job, number))
    return note


def _reader(job: Job, part: Part) -> PartReader:
    attempt = parts_lib.newest_attempt(job, part)
    if attempt is None:
        raise UserError(f"the work file of {part.files[0].name} was removed; run the same command again")
    file = parts_lib.part_file(job, part, attempt)
    with damage_named(file):
        return PartReader(file)


def _facts(job: Job, reader: PartReader) -> list[Any]:
    """Name, survivors, bytes of the keys of each rule across pairs, and the content's digest of a part's file."""
    sections = reader.footer["sections"]
    keys = [sections[f"keys-{number}"][1] for number in range(len(job.across))]
    return [epath.Path(reader.path).name, reader.footer["survivors"], keys, reader.footer["content"]]


def _rows_in_order(parts: Sequence[Part], readers: Sequence[PartReader], section: str) -> Iterator[dict[str, Any]]:
    by_file = itertools.groupby(zip(parts, readers, strict=True), lambda each: each[0].files)
    for _, strides in by_file:
        lists = []
        for part, reader in strides:
            with damage_named(reader.path):
                lists.append([(part.position(row), row) for row in reader.lines(section)])
        for _, row in heapq.merge(*lists, key=operator.itemgetter(0)):
            yield row


def _first_examples(readers: Iterable[PartReader]) -> _Examples:
    examples: _Examples = {}
    for reader in readers:
        if _are_wanted(examples, reader.footer["counts"]):
            with damage_named(reader.path):
                _add_examples(examples, map(_as_shown, reader.lines("examples")))
    return examples


def _are_wanted(examples: _Examples, counts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether something that was dropped has a reason that has too few examples."""
    reasons = ((name, reason) for name, values in counts.items() if name != DOWNLOAD for reason in values["dropped"])
    return any(len(examples.get(name, {}).get(reason, ())) < examples_lib.PER_REASON for name, reason in reasons)


def _add_examples(examples: _Examples, more: Iterable[dict[str, Any]]) -> None:
    for example in more:
        kept = examples.setdefault(example["rule"], {}).setdefault(example["reason"], [])
        if len(kept) < examples_lib.PER_REASON:
            kept.append(example)


def _as_shown(example: dict[str, Any]) -> dict[str, Any]:
    """An example without what only its part needs."""
    return {key: value for key, value in example.items() if key != "position"}


def _in_order(examples: _Examples) -> Iterator[dict[str, Any]]:
    for by_reason in examples.values():
        for kept in by_reason.values():
            yield from kept


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


def _joined(job: Job) -> epath.Path:
    return parts_lib.run_folder(job) / "survey.json"


def _block(job: Job, number: int) -> epath.Path:
    return parts_lib.run_folder(job) / f"block-{number:06d}.json"


def _lines(job: Job, kind: str, number: int) -> epath.Path:
    return parts_lib.run_folder(job) / f"{kind}-{number:06d}.jsonl"
