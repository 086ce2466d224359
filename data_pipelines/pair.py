"""The one value between a reader and a rule: `RawPair`, an entry of a public corpus before it is cleaned.

    reader of a corpus -> RawPair -> rules -> RawPair -> composer -> Records

A pair is a picture with everything that a corpus says about it, so that the annotations of one picture stay together:
captions, questions, regions, written lines, or a dialogue. Pure text is a pair without a picture. Nothing here decodes
a picture or knows a file format.

Boxes are `(x1, y1, x2, y2)` and quadrilaterals `((x, y) * 4)`, clockwise from the top left, both in pixels of the
picture as stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from qwenvl_jax.data.dialogues import Turn
from qwenvl_jax.runtime import storage

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]


@dataclasses.dataclass(frozen=True)
class Picture:
    """An encoded picture: its bytes, or the path of the file that has them.

    Attributes:
      encoded: the bytes; empty if `path` names a file.
      path: on a disk or gs://; the file is read when somebody needs the bytes.
      width: in pixels, as the corpus states it; 0 if it does not.
      height: as `width`.
    """

    encoded: bytes = b""
    path: str = ""
    width: int = 0
    height: int = 0

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
          OSError, StorageError: if the file cannot be read.
        """
        return self.encoded or storage.read_bytes(self.path)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One annotated answer. `confidence` is from 0 to 1; 1 if the corpus does not state it."""

    text: str
    confidence: float = 1.0


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about the pictures.

    Two questions are equal if they ask the same, whatever their ids, categories and groups are.

    Attributes:
      text: the question.
      answers: of all annotators, in their order; empty in hidden test sets. An annotator who left the answer empty has
        an `Answer` without a text, because metrics count annotators.
      choices: the options if it is a multiple choice.
      right: index of the right option; -1 if it is not stated.
      hint: a context of the question, or a description of the picture.
      id: as the publisher numbers it; "" if the corpus has none.
      category: the subject, the subtask, or the type of the question.
      group: the same for questions that a benchmark counts together.
    """

    text: str
    answers: tuple[Answer, ...]
    choices: tuple[str, ...] = ()
    right: int = -1
    hint: str = ""
    id: str = dataclasses.field(default="", compare=False)
    category: str = dataclasses.field(default="", compare=False)
    group: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Region:
    """A phrase and the boxes that show it.

    `start` and `end` are the offsets of the phrase in `RawPair.texts[0]`, in Unicode characters; -1 if the phrase does
    not come from a caption. `score` is the confidence of the corpus' detector, 1 if it states none. `id` is the
    publisher's, "" if there is none; it does not count when regions are compared.
    """

    phrase: str
    boxes: tuple[Box, ...]
    start: int = -1
    end: int = -1
    score: float = 1.0
    id: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of text in the picture; `quad` is in pixels, clockwise from the top left of the text."""

    text: str
    quad: Quad


@dataclasses.dataclass(frozen=True)
class RawPair:
    """An entry of a corpus: a picture, or several, with everything that the corpus says about it.

    Attributes:
      id: unique within the corpus.
      source: the name of the corpus in `corpora.table`.
      license: of pictures and texts, as the corpus states it for this entry, else the corpus' licence.
      language: "en", "zh", another code that the corpus states, or "" if it states none.
      pictures: empty for pure text.
      texts: the captions of the picture, or the one text.
      questions, regions, lines, turns: the annotations of the picture, by kind; a corpus has one or two of the kinds.
      system: the text of the system's turn before `turns`; "" for the default one.
      in_thousandths: whether the regions in `turns` are in thousandths of their picture, not in pixels.
      scores: numbers that the corpus states about the pair, under the corpus' names, such as "similarity" of LAION; and
        "clip", if a run computes it.
      number: as the publisher numbers the picture, by which results on captions are named; "" if it is `id`.
      category: of the picture, by which results on captions are grouped.
    """

    id: str
    source: str
    license: str
    language: str = ""
    pictures: tuple[Picture, ...] = ()
    texts: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    regions: tuple[Region, ...] = ()
    lines: tuple[Line, ...] = ()
    turns: tuple[Turn, ...] = ()
    system: str = ""
    in_thousandths: bool = False
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    number: str = dataclasses.field(default="", compare=False)
    category: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class FailedRow:
    """A row of a corpus that could not be read or processed. It is kept with its reason, and can be retried.

    Attributes:
      reason: a short text from a small set, such as "not JSON" or "picture missing", by which rows are counted.
      detail: the exact problem of this row.
    """

    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class AbsentRow:
    """A row of which the corpus itself says that it has no picture, because its download failed.

    It is counted by `reason`, a short text from a small set. It is not retried: nothing changes before the corpus does.
    """

    reason: str


Row = RawPair | FailedRow | AbsentRow
