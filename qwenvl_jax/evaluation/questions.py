"""The questions of one benchmark: all of them checked before the first is asked, their pictures decoded batch by batch.

Only lengths are kept of what is not being asked: a record is read a second time when its batch comes, so that memory
goes by the batch and not by the benchmark.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from qwenvl_jax.data.examples import Prompt, make_prompt, tokenize_pieces
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record, stated_sizes
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.tasks.task import Question, Task
from qwenvl_jax.runtime.errors import StorageError, UserError

THREADS = min(8, 2 * (os.cpu_count() or 1))
AHEAD = 2  # batches that are read and decoded while one is answered


class QuestionSize(NamedTuple):
    """Where a question comes from and how long it is.

    Attributes:
      record, number: the record's index, and which of its questions this is.
      tokens: of the prompt outside its images.
      shown: how often an image stands in it.
      images: how many different ones.
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
    """A question that is due: its number in the set, and its prompt, or why there is none."""

    number: int
    question: Question
    prompt: Prompt | None
    why: str


class QuestionSet:
    """The questions of the first records of a reader.

    Args:
      task: what is asked.
      reader: the records.
      count: how many of them.
      tokenizer: of the models that will be asked.
      style: of the prompts.
      progress: called once per record.

    Attributes:
      records: how many there are.
      lost: those of them that cannot be read. A record that is there but cannot be scored is a mistake in the set.

    Raises:
      UserError: for a record of another task, one that the task cannot score, or if none can be read.
    """

    def __init__(
        self,
        task: Task,
        reader: RecordReader,
        count: int,
        tokenizer: Tokenizer,
        style: str,
        progress: Callable[[], Any] = lambda: None,
    ):
        self.task, self.records, self.lost = task, count, list[Unanswered]()
        self._reader, self._tokenizer, self._style = reader, tokenizer, style
        self._sizes: list[QuestionSize] = []
        with concurrent.futures.ThreadPoolExecutor(THREADS, "open") as pool:
            for found in _in_order(pool, self._open, range(count), 4 * THREADS):
                if isinstance(found, Unanswered):
                    self.lost.append(found)
                else:
                    self._sizes += found
                progress()
        if count and not self._sizes:
            raise UserError(
                f"no record of {reader.folder} can be read, the first because of: {self.lost[0].why}; copy or write "
                "the folder again"
            )

    def __len__(self) -> int:
        return len(self._sizes)

    def sizes(self, queries: int) -> list[tuple[int, int]]:
        """(tokens, images) of every question's prompt for a model with `queries` places per image."""
        return [(size.tokens + size.shown * (queries + 2), size.images) for size in self._sizes]

    def batches(
        self, groups: Sequence[Sequence[int]], queries: int, image_size: int, known: Callable[[int], bool]
    ) -> Iterator[list[Asked]]:
        """The questions of every group in turn, the next ones read and decoded meanwhile.

        Args:
          groups: numbers of questions.
          queries, image_size: of the model.
          known: whether the answer to a question is there already; it is left out.
        """

        def prepare(number: int) -> Asked:
            return self._prepare(number, queries, image_size)

        due = [number for group in groups for number in group if not known(number)]
        left = [kept for group in groups if (kept := [number for number in group if not known(number)])]
        with concurrent.futures.ThreadPoolExecutor(THREADS, "ask") as pool:
            asked = _in_order(pool, prepare, due, AHEAD * max(map(len, left), default=0))
            try:
                for group in left:
                    yield [next(asked) for _ in group]
            finally:
                pool.shutdown(cancel_futures=True)

    def _open(self, index: int) -> list[QuestionSize] | Unanswered:
        try:
            record = self._reader[index]
        except READ_AGAIN:
            raise
        except Exception as error:  # whatever damaged bytes make a library raise
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
                if any(
                    piece.kind == "image" and not 0 <= int(piece.value) < len(record.images)
                    for piece in question.pieces
                ):
                    raise UserError(f"it shows a picture that it does not have; it has {len(record.images)}")
        except UserError as error:
            raise UserError(f"{name} cannot be scored: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{name} has a content that the task {self.task.name!r} cannot ask ({error!r})") from None
        return asked

    def _prepare(self, number: int, queries: int, image_size: int) -> Asked:
        size = self._sizes[number]
        record = self._reader[size.record]
        question, stated = self._questions(record)[size.number], stated_sizes(record)
        try:
            prompt = make_prompt(question.pieces, question.images, self._tokenizer, queries, image_size, stated)
        except UserError as error:
            return Asked(number, question, None, str(error))
        return Asked(number, question, prompt, "")


# Not the record's fault: what fails here may succeed when it is tried again, so that no answer may depend on it.
READ_AGAIN = (StorageError, OSError, MemoryError)


def _in_order(
    pool: concurrent.futures.Executor, function: Callable[[int], Any], items: Sequence[int], ahead: int
) -> Iterator[Any]:
    """`function` of every item, in their order, of at most `ahead` items before they are asked for."""
    waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
