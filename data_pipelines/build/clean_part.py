"""The step `clean`: the rows of one part through the rules and composers of a corpus, into the file of the part.

A row ends as a survivor, as dropped by a rule, or as failed. Nothing is kept in memory but tables with a few numbers
per survivor. Counts hold only rows that did not fail, so a row that fails first and is kept by a retry counts once.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.examples import Examples, describe, shortened, with_evidence
from data_pipelines.build.job import Job
from data_pipelines.build.part_files import Frames, PartDamaged, PartReader, PartWriter, encode_frame
from data_pipelines.build.parts import Numbered, Part
from data_pipelines.build.read_files import ReadFiles, are_unchanged
from data_pipelines.build.scores import PartScores, read_scores, scores_file
from data_pipelines.clean.across import Candidate
from data_pipelines.clean.rule import Judged, RuleCounts, count, judge, new_counts
from data_pipelines.pair import AbsentRow, FailedRow, RawPair, Row
from qwenvl_jax.data.record_format import encode_record
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError, file_errors_of, one_line

DOWNLOAD = "download"  # the name that counts rows that the corpus could not download
COMPOSE = "compose"  # the name that counts pairs from which no composer makes a record
NOTHING = "nothing to learn from"
_OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
NEVER_A_ROW = (StorageError, KeyboardInterrupt, SystemExit, GeneratorExit)


@dataclasses.dataclass(frozen=True)
class Survivor:
    """A pair that all rules for pairs have kept, as records."""

    records: dict[str, Record]
    sizes: tuple[int, ...]
    candidates: tuple[Candidate | None, ...]
    texts: list[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a row: its way through the rules unless it failed, and the survivor if it was kept."""

    judged: Judged | None = None
    survivor: Survivor | None = None
    failed: FailedRow | None = None
    id: str = ""


def clean_part(job: Job, part: Part) -> None:
    """Writes the file of a part, unless the work folder has it and nothing that it depends on has changed.

    Raises:
      UserError: if the part's file changes while it is read.
      StorageError: if storage does not answer.
      OSError: if the disk is full.
    """
    attempt = parts_lib.newest_attempt(job, part)
    previous = _usable(job, part, attempt)
    if _is_finished(job, previous, attempt):
        return
    if not job.retry:
        previous = None
    target = parts_lib.part_file(job, part, job.attempt if attempt is None or job.retry else attempt)
    with storage.local_output(target) as temporary, file_errors_of(target), temporary.open("wb") as file:
        signatures = [rule.signature_bytes for rule in job.across]
        writer = PartWriter(file, job.corpus.tasks, signatures)
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(_Previous.of(job, part, previous)) if previous is not None else None
            _write_part(job, part, writer, old)
        parts_lib.check_unchanged(job, part)


def is_cleaned(job: Job, part: Part) -> bool:
    """Whether `clean_part` has nothing to do for a part."""
    attempt = parts_lib.newest_attempt(job, part)
    return _is_finished(job, _usable(job, part, attempt), attempt)


def _is_finished(job: Job, previous: PartReader | None, attempt: int | None) -> bool:
    return previous is not None and (not job.retry or attempt == job.attempt or not previous.footer["failed"])


def _usable(job: Job, part: Part, attempt: int | None) -> PartReader | None:
    """The part's file if it is whole and the files that its rows have read are unchanged.

    A retry ignores files that only failed rows have read, because it is meant for files that have changed.
    """
    if attempt is None:
        return None
    try:
        reader = PartReader(parts_lib.part_file(job, part, attempt))
        again = job.retry and attempt < job.attempt
        unchanged = are_unchanged(reader.lines("read"), but_of_failed_rows=again)
    except (PartDamaged, FileNotFoundError, ValueError):
        return None
    return reader if unchanged else None


def _write_part(job: Job, part: Part, writer: PartWriter, old: _Previous | None) -> None:
    counts = {name: RuleCounts() for name in (DOWNLOAD, *new_counts(job.recipe), COMPOSE)}
    examples = Examples(old.reader.lines("examples") if old else ())
    files = ReadFiles(os.fspath(job.folder / file.name) for file in part.files)
    failed: list[dict[str, Any]] = []
    evidence: list[dict[str, Any]] = old.reader.lines("evidence") if old else []
    scores = _scores(job, part)
    total = 0
    with storage.watched(files.saw):
        for number, row in rows_of(job, part):
            total += 1
            files.are_of(failed_row=False)  # these are the reader's
            if old is not None and number.position not in old.failed:
                continue
            if isinstance(row, AbsentRow):
                counts[DOWNLOAD].seen += 1
                counts[DOWNLOAD].dropped[row.reason] += 1
                continue
            outcome = _outcome(job, scores.given_to(number.position, row))
            files.are_of(failed_row=outcome.failed is not None)
            if outcome.failed is not None:
                reason = outcome.failed.reason
                detail = parts_lib.without_folder(job, outcome.failed.detail or reason)
                cause = {"reason": reason, "detail": one_line(detail)}
                failed.append({"file": number.file, "row": number.row, "id": outcome.id, **cause})
                continue
            assert outcome.judged is not None
            _count(job, outcome, counts)
            if outcome.survivor is None:
                _keep_example(outcome.judged, outcome.id, number, examples)
                if outcome.judged.dropped is not None and outcome.judged.dropped.evidence:
                    evidence.append(with_evidence(outcome.judged, outcome.id, number.file, number.row))
                continue
            if old is not None:
                old.copy_until(number.position, writer)
            _add(writer, number, outcome.survivor)
    if old is not None:
        old.copy_until(None, writer)
        old.add_counts(counts)
    facts: dict[str, Any] = {
        "rows": total,
        "failed": len(failed),
        "reasons": collections.Counter(row["reason"] for row in failed),
        "counts": {name: each.as_json() for name, each in counts.items()},
    }
    read = [*(old.served_files() if old else ()), *files.entries()]
    evidence.sort(key=part.position)
    sections = {"failed": failed, "examples": examples.entries(), "evidence": evidence, "read": read}
    writer.finish(facts, {name: _as_lines(values) for name, values in sections.items()})


def _scores(job: Job, part: Part) -> PartScores:
    """The CLIP scores of a part; none if the run computes none."""
    scores = read_scores(job, part) if job.clip is not None else PartScores()
    if scores is None:
        raise UserError(f"{scores_file(job, part)} is gone or out of date; run the same command again")
    return scores


def _as_lines(values: Iterable[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def rows_of(job: Job, part: Part) -> Iterator[tuple[Numbered, Row]]:
    """The rows of a part with their numbers. A reader that stops in a file leaves a failed row where it stopped."""
    for index, file in enumerate(part.files):
        for number, row in _rows_of_file(job, job.folder / file.name):
            if part.has(number):
                yield part.numbered(index, number), row


def _rows_of_file(job: Job, file: epath.Path) -> Iterator[tuple[int, Row]]:
    number = -1
    try:
        rows = job.corpus.layout.read_file(job.corpus, job.folder, job.corpus.splits[job.split], file)
        for number, row in enumerate(rows):
            yield number, row
    except NEVER_A_ROW:
        raise
    except Exception as error:
        raise_if_of_machine(error)
        yield number + 1, FailedRow("the reader stopped", f"{type(error).__name__}: {one_line(error)}")


def _outcome(job: Job, row: RawPair | FailedRow) -> Outcome:
    if isinstance(row, FailedRow):
        return Outcome(failed=row)
    try:
        judged = judge(job.recipe, row)
        if judged.dropped is not None:
            return Outcome(judged, id=row.id)
        return Outcome(judged, _survivor(job, judged.pair), id=row.id)
    except NEVER_A_ROW:
        raise
    except FileNotFoundError as error:
        return Outcome(failed=FailedRow("picture missing", f"{error.filename} is not there"), id=row.id)
    except OSError as error:
        raise_if_of_machine(error)
        return Outcome(failed=FailedRow("picture unreadable", one_line(error)), id=row.id)
    except UserError as error:
        return Outcome(failed=FailedRow("not well formed", one_line(error)), id=row.id)
    except UnicodeError as error:
        return Outcome(failed=FailedRow("text is not Unicode", one_line(error)), id=row.id)
    except Exception as error:
        if "embedded null" in str(error):
            return Outcome(failed=FailedRow("picture missing", "its path has a null character"), id=row.id)
        step = (getattr(error, "__notes__", None) or [COMPOSE])[0]
        return Outcome(failed=FailedRow(f"{step} failed", f"{type(error).__name__}: {one_line(error)}"), id=row.id)


def raise_if_of_machine(error: Exception) -> None:
    """A full disk or too many open files are not a row's fault."""
    if isinstance(error, OSError) and error.errno in _OF_MACHINE:
        raise error


def _survivor(job: Job, pair: RawPair) -> Survivor | None:
    """The records of a pair; None if no task has anything to learn from it."""
    records = {}
    sizes = []
    for task in job.corpus.tasks:
        record = job.composers[task](pair)
        sizes.append(0 if record is None else len(encode_record(record)))
        if record is not None:
            records[task] = record
    if not records:
        return None
    candidates = tuple(rule.candidate(pair) for rule in job.across)
    return Survivor(records, tuple(sizes), candidates, shortened(pair.texts))


def _count(job: Job, outcome: Outcome, counts: dict[str, RuleCounts]) -> None:
    assert outcome.judged is not None
    counts[DOWNLOAD].seen += 1
    count(job.recipe, outcome.judged, counts)
    if outcome.judged.dropped is None:
        counts[COMPOSE].seen += 1
        counts[COMPOSE].dropped.update([NOTHING] if outcome.survivor is None else [])


def _keep_example(judged: Judged, id: str, number: Numbered, examples: Examples) -> None:
    rule = judged.rule or COMPOSE
    reason = judged.dropped.reason if judged.dropped else NOTHING
    evidence = list(judged.dropped.evidence) if judged.dropped else []
    if examples.wants(rule, reason, number.position):
        head = {"rule": rule, "reason": reason, **number._asdict()}
        examples.add({**head, **describe(judged.pair), "evidence": evidence})


def _add(writer: PartWriter, number: Numbered, survivor: Survivor) -> None:
    facts = {"file": number.file, "row": number.row, "texts": survivor.texts}
    writer.add(number.position, encode_frame(survivor.records, facts), survivor.sizes, survivor.candidates)


@dataclasses.dataclass
class _Previous:
    """The part's file of the attempt before, from which everything is copied except the failed rows."""

    reader: PartReader
    frames: Frames
    index: np.ndarray
    keys: Sequence[np.ndarray]
    failed: frozenset[int]
    copied: int = 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, job: Job, part: Part, reader: PartReader) -> Iterator[_Previous]:
        keys = [reader.keys(number, rule.signature_bytes) for number, rule in enumerate(job.across)]
        failed = frozenset(map(part.position, reader.lines("failed")))
        with reader.frames() as frames:
            yield cls(reader, frames, reader.index(), keys, failed)

    def copy_until(self, position: int | None, writer: PartWriter) -> None:
        """Copies the survivors before a position that are not yet copied; None: all that are left."""
        while self.copied < len(self.index):
            entry = self.index[self.copied]
            if position is not None and entry["position"] >= position:
                break
            keys = []
            for rows in self.keys:
                first, last = np.searchsorted(rows["index"], [self.copied, self.copied + 1])
                keys.append(rows[first:last])
            sizes = [int(size) for size in entry["sizes"]]
            writer.copy(int(entry["position"]), self.frames.encoded(entry), sizes, keys)
            self.copied += 1

    def add_counts(self, counts: dict[str, RuleCounts]) -> None:
        """Adds the counts of the rows that did not fail."""
        for name, values in self.reader.footer["counts"].items():
            counts[name].add(RuleCounts.from_json(values))

    def served_files(self) -> list[list[Any]]:
        """The files that rows which did not fail have read."""
        return [entry for entry in self.reader.lines("read") if not entry[1]]
