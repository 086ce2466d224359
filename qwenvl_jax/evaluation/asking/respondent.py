"""A checkpoint that answers the questions of a benchmark: continues prompts, or compares options."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from qwenvl_jax.evaluation.asking.questions import Prepared, QuestionSet
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED, Question
from qwenvl_jax.evaluation.generation.generate import Generator
from qwenvl_jax.evaluation.generation.likelihood import OptionScorer
from qwenvl_jax.evaluation.generation.prefixes import Choice
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.evaluation.generation.sampling import Limits
from qwenvl_jax.evaluation.results.answers import Answer
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import log

REPORT_SECONDS = 60.0  # between two lines of progress if there is no terminal


class Respondent:
    """A model on its devices.

    Attributes:
      image_size: pixels of an image's side.
      queries: features per image.
      positions: tokens of the longest prompt that is asked.
    """

    def __init__(self, model: LoadedModel, mesh: Mesh, batch_size: int, image_size: int):
        self.image_size = image_size
        self.queries = model.config.resampler.queries
        self.positions = model.config.decoder.max_positions
        self._generator = Generator(model, batch_size, mesh)
        self._scorer = OptionScorer(model, batch_size, mesh)

    @property
    def encoded(self) -> int:
        """How many pictures have been encoded so far."""
        return self._generator.encoded + self._scorer.encoded

    def _prepared(self, questions: QuestionSet, numbers: Sequence[int]) -> Iterator[Prepared]:
        return questions.prepared(numbers, self.queries, self.image_size, self.positions)

    def continued(
        self,
        questions: QuestionSet,
        numbers: Sequence[int],
        limits: Limits,
        refused: Callable[[int, Question, str], None],
    ) -> Iterator[tuple[int, Question, Answer]]:
        """Generates the answers of some questions, and yields them as they end.

        Args:
          questions: the set.
          numbers: of the questions that are asked.
          limits: when an answer ends.
          refused: called with each question that cannot be asked, and why.
        """
        waiting: dict[Hashable, tuple[int, Question]] = {}

        def requests() -> Iterator[Request]:
            for number, question, request, why in self._prepared(questions, numbers):
                if request is None:
                    refused(number, question, why)
                else:
                    waiting[number] = number, question
                    yield request

        longest = questions.longest(self.queries, self.positions)
        for key, ids in self._generator.generate(requests(), limits, longest=longest):
            number, question = waiting.pop(key)
            yield number, question, Answer(questions[number].key, questions.text(ids), len(ids))

    def compared(
        self, questions: QuestionSet, numbers: Sequence[int], refused: Callable[[int, Question, str], None]
    ) -> Iterator[tuple[int, Question, Answer]]:
        """Compares the options of some questions; see `continued`."""
        waiting: dict[Hashable, tuple[int, Question]] = {}

        def choices() -> Iterator[Choice]:
            for number, question, request, why in self._prepared(questions, numbers):
                if request is None:
                    refused(number, question, why)
                else:
                    waiting[number] = number, question
                    yield Choice(request, questions.options(question))

        for scores in self._scorer.score(choices()):
            number, question = waiting.pop(scores.key)
            text = question.options[scores.best]
            yield number, question, Answer(questions[number].key, text, 0, tuple(scores.scores))


def answered_rows(
    questions: QuestionSet,
    known: Mapping[str, Answer],
    add: Callable[[Answer], None],
    respondent: Callable[[], Respondent],
    limits: Limits,
    title: str,
) -> list[dict[str, Any]]:
    """The rows of all questions; those without an answer are asked first.

    Args:
      questions: of this process.
      known: answers by the keys of their questions.
      add: adds a new answer to `known`.
      respondent: loads the model, if a question has to be asked.
      limits: when a generated answer ends.
      title: for the progress.
    """
    rows: dict[int, dict[str, Any]] = {}
    unknown: dict[str, int] = {}  # a question that is asked twice is answered once
    for number in range(len(questions)):
        if questions[number].key not in known:
            unknown.setdefault(questions[number].key, number)
    with log.progress(title, len(unknown)) as advance:
        pace = _Pace(title, len(unknown))

        def refused(number: int, question: Question, why: str) -> None:
            row = questions.benchmark.unanswered(question.about)
            rows[number] = _about(questions, number, question) | {"tokens": 0, **row, UNANSWERED: why}

        generated = [number for number in unknown.values() if not questions[number].options]
        compared = [number for number in unknown.values() if questions[number].options]
        for numbers, ask in ((generated, _generate(limits)), (compared, Respondent.compared)):
            if not numbers:
                continue
            for number, question, answer in ask(respondent(), questions, numbers, refused):
                add(answer)
                rows[number] = _row(questions, number, question, answer)
                advance(1)
                pace.one_more()
    for number, question in questions.read([number for number in range(len(questions)) if number not in rows]):
        given = known.get(questions[number].key)
        if given is not None:
            rows[number] = _row(questions, number, question, given)
        else:  # the same question as one that could not be asked
            refused(number, question, rows[unknown[questions[number].key]][UNANSWERED])
    return [rows[number] for number in range(len(questions))]


def _generate(limits: Limits) -> Callable[..., Iterator[tuple[int, Question, Answer]]]:
    def ask(
        respondent: Respondent, questions: QuestionSet, numbers: Sequence[int], refused: Callable[..., None]
    ) -> Iterator[tuple[int, Question, Answer]]:
        return respondent.continued(questions, numbers, limits, refused)

    return ask


def _about(questions: QuestionSet, number: int, question: Question) -> dict[str, Any]:
    facts = questions[number]
    row = {"id": question.id, "key": facts.key, "cluster": facts.cluster}
    return row if facts.record_id == question.id else row | {"record": facts.record_id}


def _row(questions: QuestionSet, number: int, question: Question, answer: Answer) -> dict[str, Any]:
    """One line of predictions."""
    row = _about(questions, number, question) | {"raw": answer.text, "tokens": answer.tokens}
    if answer.likelihoods:
        row["likelihoods"] = list(answer.likelihoods)
    return row | questions.benchmark.read(answer.text, question.about)


class _Pace:
    """Says every minute how far the questions are, if there is no terminal to show a bar."""

    def __init__(self, title: str, total: int):
        self._title = title
        self._total = total
        self._done = 0
        self._began = self._said = time.monotonic()

    def one_more(self) -> None:
        """Counts one answer."""
        self._done += 1
        now = time.monotonic()
        if now - self._said < REPORT_SECONDS or log.console().is_terminal:
            return
        self._said = now
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate
        log.line(
            f"{log.printable(self._title)}: {self._done:,} of {self._total:,} questions, {rate:.1f} per second, "
            f"{left / 60:.0f} minutes left"
        )
