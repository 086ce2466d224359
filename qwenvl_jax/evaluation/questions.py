"""The questions of one benchmark: all are checked before the first is asked; pictures are decoded batch by batch.

Between the two only the lengths of questions are kept. A record is read a second time when its batch comes, so memory
grows with the batch and not with the benchmark.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from qwenvl_jax.data.examples import tokenize_pieces
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record, stated_sizes
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generate import Request
from qwenvl_jax.evaluation.pictures import Pictures
from qwenvl_jax.evaluation.tasks.task import Question, Task
from qwenvl_jax.runtime.errors import StorageError, UserError

THREADS = min(8, 2 * (os.cpu_count() or 1))
AHEAD = 64  # questions that are read, and their pictures decoded, before they are needed

# Errors that are not the record's fault. A second try may succeed, so no answer may depend on them.
READ_AGAIN = (StorageError, OSError, MemoryError)


class QuestionSize(NamedTuple):
    """The origin and the length of a question.

    Attributes:
      record: index of the record.
      number: index of the question among those of its record.
      tokens: tokens of the prompt, without its images.
      shown: how many times the prompt shows an image.
      images: how many different images it shows.
    """

    record: int
    number: int
    tokens: int
    shown: int
    images: int


@dataclasses.dataclass(frozen=True)
class Unanswered:
    """A question that cannot be asked, or a record that cannot be read, and why."""

    id: str
    why: str


class Asked(NamedTuple):
    """A question that is to be asked: its number in the set, and its request, or the reason why there is none."""

    number: int
    question: Question
    request: Request | None
    why: str


class QuestionSet:
    """The questions of the first records of a reader.

    Args:
      task: turns records into questions.
      reader: the records.
      count: how many records are asked about.
      tokenizer: the vocabulary of the models that will be asked.
      style: the prompt style.
      progress: called once per record.

    Attributes:
      records: the number of records.
      lost: the records that cannot be read. A record that can be read but not scored is a mistake in the set.

    Raises:
      UserError: if a record belongs to another task or cannot be scored, or if no record can be read.
    """

    def __init__(
        self,
        task: Task,
        reader: RecordReader,
        count: int,
        tokenizer: Tokenizer,
        style: str,
        progress: Callable[[], Any] = lambda: None,
    ) -> None:
        self.task = task
        self.records = count
        self.lost: list[Unanswered] = []
        self._reader = reader
        self._tokenizer = tokenizer
        self._style = style
        self._sizes: list[QuestionSize] = []
        with concurrent.futures.ThreadPoolExecutor(THREADS, "open") as pool:
            for sizes in _in_order(pool, self._open, range(count), 4 * THREADS):
                if isinstance(sizes, Unanswered):
                    self.lost.append(sizes)
                else:
                    self._sizes += sizes
                progress()
        if count and not self._sizes:
            raise UserError(
                f"no record of {reader.folder} can be read, the first because of: {self.lost[0].why}; copy or write "
                "the folder again"
            )

    def __len__(self) -> int:
        return len(self._sizes)

    def longest(self, queries: int) -> int:
        """Tokens of the longest prompt for a model with `queries` features per image."""
        return max((size.tokens + size.shown * (queries + 2) for size in self._sizes), default=0)

    def asked(self, queries: int, image_size: int, known: Callable[[int], bool]) -> Iterator[Asked]:
        """The questions in order; the next ones are read and decoded in the background.

        Args:
          queries: features per image.
          image_size: pixels of an image's side.
          known: tells whether a question has an answer already; such questions are left out.
        """
        pictures = Pictures(image_size)

        def prepare(number: int) -> Asked:
            return self._prepare(number, queries, pictures)

        remaining = [number for number in range(len(self._sizes)) if not known(number)]
        with concurrent.futures.ThreadPoolExecutor(THREADS, "ask") as pool:
            try:
                yield from _in_order(pool, prepare, remaining, AHEAD)
            finally:
                pool.shutdown(cancel_futures=True)

    def _open(self, index: int) -> list[QuestionSize] | Unanswered:
        try:
            record = self._reader[index]
        except READ_AGAIN:
            raise
        except Exception as error:  # damaged bytes make libraries raise anything
            return Unanswered(f"record {index}", f"{self._reader.folder}: {error}")
        sizes = []
        for number, question in enumerate(self._questions(record)):
            tokens = tokenize_pieces(question.pieces, self._tokenizer, 1)
            shown = sum(piece.kind == "image" for piece in question.pieces)
            sizes.append(
                QuestionSize(index, number, len(tokens.tokens_L) - 3 * shown, shown, len(tokens.image_indices))
            )
        return sizes

    def _questions(self, record: Record) -> list[Question]:
        name = f"record {record.id!r} of {self._reader.folder}"
        if record.task != self.task.name:
            raise UserError(
                f"{name} is one of the task {record.task!r}, which the task {self.task.name!r} of the evaluation "
                "cannot ask; name records of that task"
            )
        try:
            asked = self.task.questions(record, self._style)
            for question in asked:
                shown = [int(piece.value) for piece in question.pieces if piece.kind == "image"]
                if not all(0 <= index < len(record.images) for index in shown):
                    raise UserError(f"it shows a picture that it does not have; it has {len(record.images)}")
        except UserError as error:
            raise UserError(f"{name} cannot be scored: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{name} has a content that the task {self.task.name!r} cannot ask ({error!r})") from None
        return asked

    def _prepare(self, number: int, queries: int, pictures: Pictures) -> Asked:
        size = self._sizes[number]
        record = self._reader[size.record]
        question = self._questions(record)[size.number]
        stated = stated_sizes(record)
        tokens = tokenize_pieces(question.pieces, self._tokenizer, queries)
        try:
            shown = tuple(
                pictures.picture(question.images[index], stated[index] if stated else None)
                for index in tokens.image_indices
            )
        except UserError as error:
            return Asked(number, question, None, str(error))
        return Asked(number, question, Request(number, tokens.tokens_L, tokens.image_query_L, shown, seed=number), "")


def _in_order(
    pool: concurrent.futures.Executor, function: Callable[[int], Any], items: Sequence[int], ahead: int
) -> Iterator[Any]:
    """Yields `function` of every item in order; at most `ahead` items are started before they are needed."""
    waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
