"""The index of the inputs: picture -> records that show it, and the text dialogues; a file per stretch of records."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import Any

from data_pipelines.dialogues.job import TEXT_TASKS, DialogueJob, reader
from data_pipelines.dialogues.picture import TASKS, AnnotatedPicture, joined, plain_language
from data_pipelines.dialogues.texts import text_dialogue
from data_pipelines.dialogues.wording import TEMPLATES
from qwenvl_jax.data.schema import Record, sample_count
from qwenvl_jax.runtime import artifacts, storage

_RECORDS_AT_ONCE = 4096

Position = tuple[int, int]  # number of the folder in the job's list and of the record in it


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Consecutive records of one folder."""

    folder: int
    first: int
    stop: int


def stretches(job: DialogueJob) -> list[Stretch]:
    """All records of the inputs, cut into stretches."""
    cut = []
    for number, folder in enumerate(job.folders):
        count = len(reader(folder, job.split))
        cut += [
            Stretch(number, first, min(first + _RECORDS_AT_ONCE, count)) for first in range(0, count, _RECORDS_AT_ONCE)
        ]
    return cut


def index_stretch(job: DialogueJob, stretch: Stretch) -> None:
    """Writes the index of a stretch, unless it is there."""
    path = _path(job, stretch)
    if storage.exists(path):
        return
    records = reader(job.folders[stretch.folder], job.split)
    of_text = stretch.folder >= len(job.records)
    entries: list[list[Any]] = []
    skipped: collections.Counter[str] = collections.Counter()
    for number in range(stretch.first, stretch.stop):
        record = records[number]
        reason = _unusable(record, of_text)
        if reason:
            skipped[reason] += 1
        elif of_text:
            entries.append([number])
        else:
            picture = hashlib.sha256(record.images[0]).hexdigest()[:32]
            entries.append([number, picture, plain_language(record.language), sample_count(record)])
    artifacts.write_json(path, {"entries": entries, "skipped": dict(sorted(skipped.items()))})


def _unusable(record: Record, of_text: bool) -> str:
    """Why a record is not used; "" if it is."""
    if of_text:
        if record.task not in TEXT_TASKS or record.images:
            return "not a dialogue or text without a picture"
        if record.task == "text" and "text" not in record.content:
            return "a picture in words"
        return "" if text_dialogue(record, 0, "") else "text of one sentence"
    if record.task not in TASKS:
        return f"task {record.task}"
    return "" if plain_language(record.language) in TEMPLATES else "language"


@dataclasses.dataclass
class Index:
    """The inputs of a run.

    Attributes:
      pictures: by language, then by the digest of the picture, the positions of its records in that language.
      texts: positions of text dialogues.
      skipped: records that are not used, by reason.
    """

    pictures: dict[str, dict[str, list[Position]]]
    texts: list[Position]
    skipped: dict[str, int]


def load_index(job: DialogueJob) -> Index:
    """The finished index.

    A picture with annotations in both languages belongs to the language that has more of them, so that it is in only
    one dialogue.
    """
    positions: dict[str, dict[str, list[Position]]] = {}
    samples: dict[str, collections.Counter[str]] = {}
    texts: list[Position] = []
    skipped: collections.Counter[str] = collections.Counter()
    for stretch in stretches(job):
        values = artifacts.read_json(_path(job, stretch))
        skipped.update(values["skipped"])
        for entry in values["entries"]:
            if len(entry) == 1:
                texts.append((stretch.folder, entry[0]))
                continue
            number, picture, language, count = entry
            positions.setdefault(picture, {}).setdefault(language, []).append((stretch.folder, number))
            samples.setdefault(picture, collections.Counter())[language] += count
    pictures: dict[str, dict[str, list[Position]]] = {language: {} for language in TEMPLATES}
    for picture in sorted(positions):
        language = min(samples[picture], key=lambda code: (-samples[picture][code], code))
        pictures[language][picture] = positions[picture][language]
    return Index(pictures, texts, dict(skipped))


def picture_at(job: DialogueJob, positions: list[Position]) -> AnnotatedPicture:
    """The picture whose records are at these positions.

    Raises:
      UserError: see `picture.joined`.
    """
    return joined([reader(job.folders[folder], job.split)[number] for folder, number in positions])


def _path(job: DialogueJob, stretch: Stretch) -> Any:
    return job.work / "index" / f"{stretch.folder:04d}-{stretch.first:012d}.json"
