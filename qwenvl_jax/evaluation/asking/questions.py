"""The questions of one benchmark: all are checked before the first is asked; pictures are decoded batch by batch.

Between the two only the lengths and keys of questions are kept. A record is read a second time when its batch comes, so
memory grows with the batch and not with the benchmark.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwenvl_jax.data.examples import Tokens, tokenize_pieces
from qwenvl_jax.data.images.exact import Size
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record, stated_sizes
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.asking.ahead import in_order
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED, Asking, Benchmark, Question
from qwenvl_jax.evaluation.generation.pictures import Pictures
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.retries import READ_AGAIN

THREADS = min(8, 2 * (os.cpu_count() or 1))
AHEAD = 64  # questions that are read, and their pictures decoded, before they are needed


class QuestionFacts(NamedTuple):
    """The facts about a question that are kept after the check.

    Attributes:
      record: index of the record.
      number: index of the question among those of its record.
      tokens: tokens of the prompt, without its images.
      shown: how many times the prompt shows an image.
      options: how many answers are compared; 0 if the answer is generated.
      record_id: of the record.
      key: 32 hex digits that change with the prompt, its pictures, and the options.
      cluster: the same for questions about the same pictures.
    """

    record: int
    number: int
    tokens: int
    shown: int
    options: int
    record_id: str
    key: str
    cluster: str


@dataclasses.dataclass(frozen=True)
class LostRecord:
    """A record that cannot be read, and why."""

    id: str
    why: str


class Prepared(NamedTuple):
    """A question with its number in the set, and its request, or the reason why it cannot be asked."""

    number: int
    question: Question
    request: Request | None
    why: str


class QuestionSet:
    """The questions of some records of a reader.

    Args:
      benchmark: turns records into questions.
      reader: the records.
      indices: of the records that are asked about.
      tokenizer: the vocabulary of the models that will be asked.
      asking: style, template and exemplars.
      progress: called once per record.

    Attributes:
      lost: the records that cannot be read. A record that can be read but not scored is a mistake in the set.

    Raises:
      UserError: if a record belongs to another task or cannot be scored, or if no record can be read.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        reader: RecordReader,
        indices: range,
        tokenizer: Tokenizer,
        asking: Asking,
        progress: Callable[[], Any] = lambda: None,
    ) -> None:
        self.benchmark = benchmark
        self.lost: list[LostRecord] = []
        self._reader = reader
        self._tokenizer = tokenizer
        self._asking = asking
        self._facts: list[QuestionFacts] = []
        with concurrent.futures.ThreadPoolExecutor(THREADS, "open") as pool:
            for facts in in_order(pool, self._open, indices, 4 * THREADS):
                if isinstance(facts, LostRecord):
                    self.lost.append(facts)
                else:
                    self._facts += facts
                progress()
        if indices and not self._facts:
            raise UserError(
                f"no record of {reader.folder} can be read, the first because of: {self.lost[0].why}; copy or write "
                "the folder again"
            )

    def __len__(self) -> int:
        return len(self._facts)

    def __getitem__(self, number: int) -> QuestionFacts:
        return self._facts[number]

    def longest(self, queries: int, positions: int) -> int:
        """Tokens of the longest prompt that is asked for a model with `queries` features per image."""
        lengths = (_length(facts, queries) for facts in self._facts)
        return max((length for length in lengths if length <= positions), default=0)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Question]]:
        """Some questions in order, without decoding their pictures."""
        with concurrent.futures.ThreadPoolExecutor(THREADS, "read") as pool:
            yield from zip(numbers, in_order(pool, self._question, numbers, AHEAD), strict=True)

    def prepared(self, numbers: Sequence[int], queries: int, image_size: int, positions: int) -> Iterator[Prepared]:
        """Some questions in order; the next ones are read and decoded in the background.

        Args:
          numbers: of the questions.
          queries: features per image.
          image_size: pixels of an image's side.
          positions: tokens of the longest prompt that is asked.
        """
        pictures = Pictures(image_size)

        def prepare(number: int) -> Prepared:
            return self._prepare(number, queries, pictures, positions)

        with concurrent.futures.ThreadPoolExecutor(THREADS, "ask") as pool:
            try:
                yield from in_order(pool, prepare, numbers, AHEAD)
            finally:
                pool.shutdown(cancel_futures=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, with special tokens written out."""
        return self._tokenizer.decode(ids)

    def options(self, question: Question) -> list[list[int]]:
        """The ids of each option of a question."""
        return [self._tokenizer.encode(option) for option in question.options]

    def _open(self, index: int) -> list[QuestionFacts] | LostRecord:
        try:
            record = self._reader[index]
        except READ_AGAIN:
            raise
        except Exception as error:  # damaged bytes make libraries raise anything
            return LostRecord(f"record {index}", f"{self._reader.folder}: {error}")
        cluster = _digest(b"".join(map(_sha256, record.images))) if record.images else record.id
        stated = _stated(record)
        digests: dict[bytes, bytes] = {}
        facts = []
        questions = self._questions(record)
        self._check_scored(record, questions)
        for number, question in enumerate(questions):
            tokens = self._tokens(question, 1)
            shown = sum(piece.kind == "image" for piece in question.pieces)
            key = _key(question, digests, stated)
            length = len(tokens.tokens_L) - 3 * shown
            facts.append(QuestionFacts(index, number, length, shown, len(question.options), record.id, key, cluster))
        return facts

    def _check_scored(self, record: Record, questions: Sequence[Question]) -> None:
        """Raises UserError if answers to the questions could not be scored, or sent to the benchmark's server."""
        rows = [
            {"id": question.id, "tokens": 0, UNANSWERED: "not yet", **self.benchmark.unanswered(question.about)}
            for question in questions
        ]
        with self._named(record):
            self.benchmark.score(rows)
            if self.benchmark.submission:
                self.benchmark.submission(rows)

    @contextlib.contextmanager
    def _named(self, record: Record) -> Iterator[None]:
        """Errors within name the record."""
        name = f"record {record.id!r} of {self._reader.folder}"
        try:
            yield
        except UserError as error:
            raise UserError(f"{name} cannot be scored: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{name} has a content that the benchmark {self.benchmark.name!r} cannot ask ({error!r})"
            ) from None

    def _questions(self, record: Record) -> list[Question]:
        name = f"record {record.id!r} of {self._reader.folder}"
        if record.task != self.benchmark.task:
            raise UserError(
                f"{name} is one of the task {record.task!r}, which the benchmark {self.benchmark.name!r} cannot ask; "
                f"name records of the task {self.benchmark.task!r}"
            )
        with self._named(record):
            asked = self.benchmark.questions(record, self._asking)
            for question in asked:
                shown = [int(piece.value) for piece in question.pieces if piece.kind == "image"]
                if not all(0 <= index < len(question.images) for index in shown):
                    raise UserError(f"it shows a picture that it does not have; it has {len(question.images)}")
        return asked

    def _question(self, number: int) -> Question:
        facts = self._facts[number]
        return self._questions(self._reader[facts.record])[facts.number]

    def _tokens(self, question: Question, queries: int) -> Tokens:
        tokens = tokenize_pieces(question.pieces, self._tokenizer, queries)
        last = self.benchmark.last_tokens
        if not last or len(tokens.tokens_L) <= last + 1:
            return tokens
        return tokens._replace(
            tokens_L=tokens.tokens_L[-last:],
            is_target_L=tokens.is_target_L[-last:],
            image_query_L=tokens.image_query_L[-last:],
        )

    def _prepare(self, number: int, queries: int, pictures: Pictures, positions: int) -> Prepared:
        facts = self._facts[number]
        record = self._reader[facts.record]
        question = self._questions(record)[facts.number]
        stated = _stated(record)
        length = _length(facts, queries)
        if length > positions:
            return Prepared(number, question, None, too_long(length, positions))
        tokens = self._tokens(question, queries)
        try:
            shown = tuple(
                pictures.picture(question.images[index], stated.get(question.images[index]))
                for index in tokens.image_indices
            )
        except UserError as error:
            return Prepared(number, question, None, str(error))
        seed = int(facts.key[:8], 16)  # so that a sample does not depend on the other questions of the set
        return Prepared(number, question, Request(number, tokens.tokens_L, tokens.image_query_L, shown, seed), "")


def _length(facts: QuestionFacts, queries: int) -> int:
    """Tokens of a prompt for a model with `queries` features per image."""
    return facts.tokens + facts.shown * (queries + 2)


def too_long(length: int, positions: int) -> str:
    """Why a prompt with more tokens than a model has positions is not asked."""
    return f"its prompt has {length:,} tokens, but the model takes at most {positions:,}; shorten it"


def _stated(record: Record) -> dict[bytes, Size | None]:
    """The sizes that a record states of its images."""
    return dict(zip(record.images, stated_sizes(record), strict=True))


def _key(question: Question, digests: dict[bytes, bytes], stated: Mapping[bytes, Size | None]) -> str:
    """The key of a question; `digests` remembers those of pictures."""
    for image in question.images:
        if image not in digests:
            digests[image] = _sha256(image)
    pieces = [
        [piece.kind, digests[question.images[int(piece.value)]].hex() if piece.kind == "image" else piece.value]
        for piece in question.pieces
    ]
    sizes = [stated.get(image) for image in question.images]
    return _digest(json.dumps([pieces, question.options, sizes], ensure_ascii=True).encode())


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _digest(content: bytes) -> str:
    return _sha256(content).hex()[:32]
