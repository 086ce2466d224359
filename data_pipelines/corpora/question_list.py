"""Files that list questions with one picture each, in any order: the family of VizWiz, TextVQA, DocVQA, ChartQA, DVQA.

The questions of one picture are brought together by an index (`json_index`) of some 40 bytes per question and 300 per
picture. The rows of a file are the questions that are not JSON or name no picture, and then the pictures in the order
of their first question.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import answers_of, id_at, phrase_at, question, read_parts, rows_of
from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.json_index import indexed
from data_pipelines.corpora.rows import BadRow, list_at, object_of, picture_path
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def listed_answers(row: Mapping[str, Any]) -> Sequence[Answer]:
    """The texts under `answers`."""
    return answers_of(list_at(row, "answers"))


def no_category(row: Mapping[str, Any]) -> str:
    """For corpora that state no type of a question."""
    return ""


@dataclasses.dataclass(frozen=True)
class QuestionList:
    """How the questions of one corpus are written. It is the `read_file` of its layout.

    Attributes:
      picture: (row, split) -> the picture's path from the corpus' folder. It may raise BadRow.
      key: of the list of questions; "" if it is at the top of the file.
      question: the key of the question.
      answers: (row) -> the answers.
      several_files: whether a picture may be in several files of a split; then its id names the file as well.
      id: the keys of the publisher's id, of which the first that a row has counts.
      category: (row) -> the type of the question, "" if the corpus states none.
      hidden: the splits whose answers the publisher keeps.
    """

    picture: Callable[[Mapping[str, Any], str], str]
    key: str = "data"
    question: str = "question"
    answers: Callable[[Mapping[str, Any]], Sequence[Answer]] = listed_answers
    several_files: bool = False
    id: tuple[str, ...] = ("question_id", "questionId")
    category: Callable[[Mapping[str, Any]], str] = no_category
    hidden: tuple[str, ...] = ("test",)

    def __call__(self, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
        """The rows of a file; see the module."""
        with indexed(file, self.key, lambda name, value: self.picture(object_of(value), split)) as index:
            yield from index.failures
            for name in index.keys:
                questions, failures = read_parts(index.values(name), functools.partial(self._question, split))
                try:
                    picture = Picture(path=picture_path(folder, name))
                except BadRow as error:
                    yield error.failed
                    continue
                id_ = f"{file.stem}:{name}" if self.several_files else name
                pair = RawPair(id_, corpus.name, corpus.license, corpus.language, (picture,), questions=questions)
                yield from rows_of(pair, failures, "questions")

    def _question(self, split: str, value: object) -> Question:
        row = object_of(value)
        hidden = split in self.hidden
        answers = () if hidden else self.answers(row)
        id_ = id_at(row, *self.id)
        return question(phrase_at(row, self.question), answers, hidden=hidden, id=id_, category=self.category(row))


def first_there(folder: epath.Path, names: Sequence[str], source: str) -> epath.Path:
    """The path of the first of some names that exists: editions of a corpus differ in their names.

    Raises:
      UserError: if there is none.
    """
    for name in names:
        if storage.exists(folder / name):
            return folder / name
    raise UserError(f"{folder / names[0]} does not exist; get it from {source}, or correct the folder")
