"""Answered questions that are shown before the one that is asked, drawn from another split.

    exemplars = Exemplars(RecordReader("data/okvqa_train/evaluation", "train"), shots=4)
    Asking(exemplars=exemplars)

The choice depends on the seed and on the id of the question alone: not on the order of questions, nor on processes and
threads. The released scripts draw in workers whose random numbers depend on how many there are.
"""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import random
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.images.exact import FORMATS, bearable
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.benchmark import Exemplar
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.retries import READ_AGAIN

CHOICES = ("random", "category")

# Records that are tried per exemplar before the split counts as unusable.
_TRIES = 64
# Records that are kept, in bytes of their pictures: questions about one picture are prepared one after the other, and
# each of them needs the exemplars of all.
_CACHED_BYTES = 64 << 20


class Exemplars:
    """Chooses exemplars; see `__call__`.

    Args:
      reader: evaluation records of the split from which exemplars are taken. They are read when they are drawn, so
        memory does not grow with the split.
      shots: exemplars of a question.
      choice: "random": records are drawn, and one question of each. "category": the first questions of the split that
        have the same category, as in the released evaluate_mmlu.py; these are read once.
      seed: of the draws.
      leak: also draws exemplars that show a picture of the question, as the released script does for Flickr30K.

    Raises:
      UserError: if the records are not questions of a benchmark, or the choice is unknown.
    """

    def __init__(
        self, reader: RecordReader, shots: int, choice: str = "random", seed: int = 0, *, leak: bool = False
    ) -> None:
        if choice not in CHOICES:
            raise UserError(f"the choice of exemplars {choice!r} is not one of {', '.join(CHOICES)}")
        if reader.tasks != (EVALUATION,):
            raise UserError(
                f"{reader.folder} has records of the task {', '.join(reader.tasks)}; exemplars are taken from those of "
                f"the task {EVALUATION}"
            )
        self._reader = reader
        self._shots = shots
        self._choice = choice
        self._seed = seed
        self._leak = leak
        self._cache: collections.OrderedDict[int, Record | None] = collections.OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._categories: dict[str, list[Exemplar]] | None = None

    def __call__(self, record: Record, number: int) -> list[Exemplar]:
        """The exemplars of one question, in the order in which they are shown.

        Args:
          record: of the question.
          number: of the question in its record.

        Raises:
          UserError: if the split has too few exemplars for the question.
        """
        question = _questions(record)[number]
        if self._choice == "category":
            chosen = self._of_category(question.get("category", ""))
        else:
            chosen = list(itertools.islice(self._drawn(question["id"], record), self._shots))
        if len(chosen) < self._shots:
            raise UserError(
                f"{self._reader.folder} has {len(chosen)} exemplars for the question {question['id']!r}, but "
                f"{self._shots} are needed; name another folder, or ask for fewer"
            )
        return chosen

    def _drawn(self, identifier: str, record: Record) -> Iterator[Exemplar]:
        """Exemplars from different records in a random order."""
        shown = set(map(_digest, record.images))
        for index in self._indices(f"{self._seed}/{identifier}"):
            drawn = self._read(index)
            if drawn is None or (not self._leak and shown & set(map(_digest, drawn.images))):
                continue
            usable = list(filter(_has_answer, _questions(drawn)))
            if usable:
                chosen = random.Random(f"{self._seed}/{identifier}/{index}").choice(usable)
                yield Exemplar(chosen, drawn.language, drawn.images)

    def _indices(self, seed: str) -> Iterator[int]:
        """Different records at random. More shots continue the same sequence."""
        generator = random.Random(seed)  # a text is hashed by sha512, alike in all processes
        count = len(self._reader)
        drawn: set[int] = set()
        while len(drawn) < min(count, self._shots * _TRIES):
            index = generator.randrange(count)
            if index not in drawn:
                drawn.add(index)
                yield index

    def _of_category(self, category: str) -> list[Exemplar]:
        with self._lock:
            if self._categories is None:
                self._categories = self._first_of_categories()
        return self._categories.get(category, [])

    def _first_of_categories(self) -> dict[str, list[Exemplar]]:
        first: dict[str, list[Exemplar]] = {}
        for index in range(len(self._reader)):
            record = self._read_record(index)
            for question in filter(_has_answer, _questions(record) if record else ()):
                members = first.setdefault(question.get("category", ""), [])
                if record and len(members) < self._shots:
                    members.append(Exemplar(question, record.language, record.images))
        return first

    def _read(self, index: int) -> Record | None:
        """`_read_record`, of records that were drawn lately without reading them."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        record = self._read_record(index)
        with self._lock:
            if index not in self._cache:
                self._cache[index] = record
                self._cached_bytes += _size(record)
            while self._cached_bytes > _CACHED_BYTES:
                self._cached_bytes -= _size(self._cache.popitem(last=False)[1])
        return record

    def _read_record(self, index: int) -> Record | None:
        """A record of which all pictures can be shown; None for another one."""
        try:
            record = self._reader[index]
        except READ_AGAIN:
            raise
        except Exception:  # damaged bytes make libraries raise anything
            return None
        return record if all(map(_is_picture, record.images)) else None


def _size(record: Record | None) -> int:
    """Bytes of the pictures of a record, and a kilobyte for the rest."""
    return 1 << 10 if record is None else sum(map(len, record.images)) + (1 << 10)


def _questions(record: Record) -> Sequence[Mapping[str, Any]]:
    content: Mapping[str, Any] = record.content
    return content["questions"]


def _has_answer(question: Mapping[str, Any]) -> bool:
    return "right" in question or any(text.strip() for text in question.get("answers", ()))


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


def _is_picture(payload: bytes) -> bool:
    """Whether the header is that of a picture; the rest is read when the prompt is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bearable(*Image.open(io.BytesIO(payload), formats=FORMATS).size)
        except Exception:  # Pillow's plugins raise nearly anything on damaged files
            return False
