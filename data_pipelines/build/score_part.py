"""The step `score`: CLIP scores of the pairs of one part, before the step `clean` that needs them.

The rules before the first one on `scores["clip"]` decide which pairs are scored. They run again in `clean`, in far less
time than the model takes. A score is that of the first picture and the text that fits it best. The step leaves one file
per part, so a run that was ended and started again scores no part twice.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence

from etils import epath

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.clean_part import NEVER_A_ROW, is_cleaned, raise_if_of_machine, rows_of
from data_pipelines.build.job import Job
from data_pipelines.build.parts import Part
from data_pipelines.build.read_files import ReadFiles
from data_pipelines.build.scores import PartScores, read_scores, scores_file
from data_pipelines.clean.rule import Rule, judge
from data_pipelines.pair import FailedRow, RawPair, Row
from data_pipelines.score.clip_model import LoadedClip, Pair, rules_before_score
from qwenvl_jax.runtime import artifacts, storage

# In one call of the model, whichever is reached first.
_PAIRS = 1024
_BYTES = 128 << 20

Waiting = list[tuple[int, Pair]]


def note_unscored(job: Job, block: int) -> None:
    """Notes which parts of a block are to be scored; see `unscored_parts`."""
    parts = parts_lib.load_block(job, block)
    wanted = parts_lib.each(functools.partial(_is_unscored, job), parts)
    numbers = [number for number, is_wanted in enumerate(wanted) if is_wanted]
    artifacts.write_json(_note(job, block), numbers)


def unscored_parts(job: Job) -> list[Part]:
    """The parts that `clean` has not finished and that have no scores, or failed rows that a retry reads again."""
    return [
        part for block in parts_lib.each(functools.partial(_noted, job), parts_lib.block_numbers(job)) for part in block
    ]


def _noted(job: Job, block: int) -> list[Part]:
    numbers = artifacts.read_json(_note(job, block))
    if not numbers:
        return []
    parts = parts_lib.load_block(job, block)
    return [parts[number] for number in numbers]


def _note(job: Job, block: int) -> epath.Path:
    return parts_lib.run_folder(job) / f"unscored-{block:06d}.json"


def _is_unscored(job: Job, part: Part) -> bool:
    return not is_cleaned(job, part) and (job.retry or read_scores(job, part) is None)


def score_part(job: Job, part: Part, model: LoadedClip) -> None:
    """Writes the file of the scores of a part; a retry keeps the scores that are there.

    Raises:
      UserError: if the part's file changes while it is read.
      StorageError: if storage does not answer.
      OSError: if the disk is full.
    """
    before = read_scores(job, part) or PartScores()
    scores = PartScores(scores=dict(before.scores))
    files = ReadFiles(os.fspath(job.folder / file.name) for file in part.files)
    with storage.watched(files.saw):
        for waiting in _chunks(_pairs(job, part, before, files)):
            similarities = model.similarities([pair for _, pair in waiting])
            for (number, _), each in zip(waiting, similarities, strict=True):
                if isinstance(each, FailedRow):
                    scores.failed[number] = [each.reason, each.detail]
                else:
                    scores.scores[number] = max(each)
    parts_lib.check_unchanged(job, part)
    scores.read = [*(entry for entry in before.read if not entry[1]), *files.entries()]
    scores.write(scores_file(job, part))


def _pairs(job: Job, part: Part, before: PartScores, files: ReadFiles) -> Iterator[tuple[int, Pair]]:
    """The pairs that the rules before the score leave, with the positions of their rows."""
    rules = rules_before_score(job.recipe)
    for number, row in rows_of(job, part):
        files.are_of(failed_row=False)  # the reader's
        if number.position in before.scores:
            continue
        pair = _pair(rules, row)
        files.are_of(failed_row=pair is None)
        if pair is not None:
            yield number.position, pair


def _pair(rules: Sequence[Rule], row: Row) -> Pair | None:
    """The first picture of a pair and its texts; None if a rule drops it, it fails, or it has not both."""
    if not isinstance(row, RawPair):
        return None
    try:
        judged = judge(rules, row)
        if judged.dropped is not None or not judged.pair.pictures or not judged.pair.texts:
            return None
        return judged.pair.pictures[0].read(), judged.pair.texts
    except NEVER_A_ROW:
        raise
    except Exception as error:  # the step `clean` meets it again and notes the reason
        raise_if_of_machine(error)
        return None


def _chunks(pairs: Iterator[tuple[int, Pair]]) -> Iterator[Waiting]:
    waiting: Waiting = []
    size = 0
    for number, pair in pairs:
        waiting.append((number, pair))
        size += len(pair[0])
        if len(waiting) >= _PAIRS or size >= _BYTES:
            yield waiting
            waiting = []
            size = 0
    if waiting:
        yield waiting
