"""The file of the CLIP scores of a part: position of a row -> score, or why its picture could not be scored.

`clean` reads it; the step `score` writes it (`score_part`).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

from data_pipelines.build.job import Job
from data_pipelines.build.parts import Part
from data_pipelines.build.read_files import are_unchanged
from data_pipelines.pair import FailedRow, RawPair
from data_pipelines.score.clip_model import CLIP
from qwenvl_jax.runtime import storage


@dataclasses.dataclass
class PartScores:
    """The scores of the rows of a part.

    Attributes:
      scores: by the position of the row in its part (`Part.numbered`).
      failed: [reason, detail] by the position of the row.
      read: the files that the rows have read (`ReadFiles.entries`).
    """

    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    failed: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    read: list[list[Any]] = dataclasses.field(default_factory=list)

    def given_to(self, position: int, row: RawPair | FailedRow) -> RawPair | FailedRow:
        """The row with its score, or as failed if its picture could not be scored."""
        if position in self.failed:
            return FailedRow(*self.failed[position])
        if position not in self.scores or isinstance(row, FailedRow):
            return row
        return dataclasses.replace(row, scores={**row.scores, CLIP: self.scores[position]})

    def write(self, path: epath.Path) -> None:
        """Writes the file, whole or not at all."""
        storage.write_bytes(path, json.dumps(dataclasses.asdict(self)).encode())


def scores_file(job: Job, part: Part) -> epath.Path:
    """The path of the scores of a part."""
    return job.work / "scores" / f"{part.digest}.json"


def read_scores(job: Job, part: Part) -> PartScores | None:
    """The scores of a part; None if there are none, or a file that its rows have read has changed.

    A retry ignores files that only failed rows have read, because it is meant for files that have changed.
    """
    try:
        values = json.loads(storage.read_bytes(scores_file(job, part)))
        scores = {int(number): score for number, score in values["scores"].items()}
        failed = {int(number): cause for number, cause in values["failed"].items()}
        unchanged = are_unchanged(values["read"], but_of_failed_rows=job.retry)
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return PartScores(scores, failed, values["read"]) if unchanged else None
