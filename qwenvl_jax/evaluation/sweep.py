"""Checkpoints x tasks on held-out records: predictions, scores and one table.

Under the output folder:
  predictions/<checkpoint>/<task>.jsonl   one line per question: the answer and what it was compared with
  predictions/<checkpoint>/<task>.json    its figures, and the fingerprint of what they belong to
  predictions/<checkpoint>/<task>.parts   answers of a task that is not finished
  scores.json                             {checkpoint: {figure: value}}, see `config.HEADLINES`
  evaluation.json                         the resolved config

Every file is written whole or not at all. An interrupted sweep continues where it stopped. Answers are only reused if
checkpoint, records and settings are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Hashable, Iterator
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint.starting_point import StartingPoint, find_starting_point
from qwenvl_jax.config import to_dict
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.tokenizer import load_tokenizer, vocabulary_digest
from qwenvl_jax.evaluation import checkpoint
from qwenvl_jax.evaluation.answers import Answers, finished
from qwenvl_jax.evaluation.config import HEADLINES, UNANSWERED, CheckpointConfig, EvalConfig, TaskConfig
from qwenvl_jax.evaluation.generate import Generator, Request
from qwenvl_jax.evaluation.questions import QuestionSet
from qwenvl_jax.evaluation.sampling import Limits
from qwenvl_jax.evaluation.tasks.registry import BENCHMARKS
from qwenvl_jax.evaluation.tasks.task import Question, Task
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import artifacts, log, storage

NAMED = 20  # scores.json names at most this many unanswered questions of a task; the task's own file names all
SCORES = "scores.json"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"


def sweep(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Asks every checkpoint every task and writes the results under `config.output`.

    Returns:
      The content of scores.json.

    Raises:
      UserError: if a checkpoint or a record folder is missing, the vocabulary does not fit a model, or records cannot
        be scored. All of this is checked before the first question is asked.
    """
    run = _Sweep(config)
    scores = {item.name: run.figures_of(item) for item in config.checkpoints}
    output = storage.path(config.output)
    artifacts.write_json(output / SCORES, scores)
    artifacts.write_json(output / EVALUATION, to_dict(config))
    _show(scores)
    return scores


class _Checkpoint:
    """A checkpoint under evaluation. Its parameters are only read if a question has to be asked."""

    def __init__(self, config: CheckpointConfig, starting_point: StartingPoint) -> None:
        self.config = config
        self.starting_point = starting_point

    @functools.cached_property
    def model(self) -> LoadedModel:
        return checkpoint.load(self.starting_point)


class _Sweep:
    """The vocabulary and the opened tasks, which all checkpoints share."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.readers = {task.name: RecordReader(task.records, task.split) for task in config.tasks}
        self.question_sets: dict[str, QuestionSet] = {}
        for item in config.checkpoints:  # report all mistakes before the first answer
            subject = self._find(item)
            for task in config.tasks:
                if finished(self._folder(item), task.name, self._fingerprint(subject, task)) is None:
                    self._questions(task)

    def figures_of(self, item: CheckpointConfig) -> dict[str, Any]:
        """The figures of all tasks for one checkpoint. Without a step, the checkpoint is now the newest of its run."""
        subject = self._find(item)
        figures: dict[str, Any] = {}
        unanswered: dict[str, Any] = {}
        for task in self.config.tasks:
            fingerprint = self._fingerprint(subject, task)
            summary = finished(self._folder(item), task.name, fingerprint)
            if summary is None:
                summary = self._ask(subject, task, fingerprint)
            figures |= summary["scores"]
            if missing := summary.get(UNANSWERED):
                unanswered[task.name] = {"questions": len(missing), "first": missing[:NAMED]}
        return figures | ({UNANSWERED: unanswered} if unanswered else {})

    def _find(self, item: CheckpointConfig) -> _Checkpoint:
        starting_point = find_starting_point(item.workdir, item.wanted_step)
        checkpoint.check_fits(starting_point, self.config.tokenizer, self.tokenizer, item.image_size)
        return _Checkpoint(item, starting_point)

    def _folder(self, item: CheckpointConfig) -> epath.Path:
        return storage.path(self.config.output) / PREDICTIONS / item.name

    def _fingerprint(self, subject: _Checkpoint, task: TaskConfig) -> str:
        """Sixteen hex digits that change with the checkpoint, the records, or how they are asked and scored."""
        parts = {
            **checkpoint.identity(subject.starting_point),
            "records": self.readers[task.name].summary,
            "task": {key: value for key, value in dataclasses.asdict(task).items() if key != "records"},
            "image_size": subject.config.image_size,
            "prompt_style": self.config.prompt_style,
            "vocabulary": self._vocabulary,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @functools.cached_property
    def _vocabulary(self) -> str:
        return vocabulary_digest(self.config.tokenizer)

    def _questions(self, task: TaskConfig) -> QuestionSet:
        if task.name not in self.question_sets:
            reader = self.readers[task.name]
            count = min(task.limit or len(reader), len(reader))
            with log.progress(f"opening {task.name}", count) as advance:
                self.question_sets[task.name] = QuestionSet(
                    BENCHMARKS[task.name], reader, count, self.tokenizer, self.config.prompt_style, advance
                )
        return self.question_sets[task.name]

    def _ask(self, subject: _Checkpoint, task: TaskConfig, fingerprint: str) -> dict[str, Any]:
        """Asks the questions of one task that have no answer yet; writes and returns the summary."""
        began = time.monotonic()
        questions = self._questions(task)
        title = f"{subject.config.name} · {task.name}"
        with Answers(self._folder(subject.config), task.name, fingerprint) as answers:
            with log.progress(title, len(questions) - len(answers.rows)) as advance:
                self._fill(answers, subject, task, advance)
            summary = _summary(answers, questions, task)
            answers.finish(summary)
        _say(_line(title, summary, time.monotonic() - began))
        if missing := summary.get(UNANSWERED):
            first = f"{missing[0]['id']}: {missing[0]['why']}"
            _say(f"  {len(missing)} could not be asked and count as wrong, the first is {first}")
        return summary

    def _fill(self, answers: Answers, subject: _Checkpoint, task: TaskConfig, advance: Any) -> None:
        """Adds the answers that are missing, as they end."""
        kind = BENCHMARKS[task.name]
        questions = self._questions(task)
        queries = subject.starting_point.config.model.resampler.queries
        asked: dict[Hashable, Question] = {}

        def requests() -> Iterator[Request]:
            """Notes the questions; one whose picture cannot be read has its row at once."""
            for number, question, request, why in questions.asked(
                queries, subject.config.image_size, answers.__contains__
            ):
                if request is None:
                    answers.add({number: {"id": question.id, **kind.unanswered(question.about), UNANSWERED: why}})
                    advance(1)
                else:
                    asked[number] = question
                    yield request

        stop_ids = tuple(self.tokenizer.special_by_name[name] for name in kind.stops)
        generator = Generator(subject.model, min(self.config.batch_size, len(questions)))
        limits = Limits(task.max_new, task.min_new, stop_ids)
        for number, ids in generator.generate(requests(), limits, longest=questions.longest(queries)):
            question = asked.pop(number)
            row = kind.read(self.tokenizer.decode(ids), question.about)
            answers.add({int(str(number)): {"id": question.id, **row}})
            advance(1)


def _summary(answers: Answers, questions: QuestionSet, task: TaskConfig) -> dict[str, Any]:
    """The figures of a finished task, and the questions that could not be asked."""
    rows = [answers.rows[number] for number in sorted(answers.rows)]
    summary: dict[str, Any] = {
        "questions": len(rows) + len(questions.lost),
        "records": questions.records,
        "scores": _figures(rows, BENCHMARKS[task.name], task, len(questions.lost)),
    }
    missing = [dataclasses.asdict(unanswered) for unanswered in questions.lost]
    missing += [{"id": row["id"], "why": row[UNANSWERED]} for row in rows if UNANSWERED in row]
    return summary | ({UNANSWERED: missing} if missing else {})


def _figures(rows: list[dict[str, Any]], kind: Task, task: TaskConfig, lost: int) -> dict[str, float]:
    """Scores over all questions. A record that cannot be read counts as one average question answered wrong."""
    settings = {"tokenisation": task.tokenisation} if task.name == "caption" and task.tokenisation else {}
    figures = kind.score(rows, **settings)
    return {key: value * len(rows) / (len(rows) + lost) if lost else value for key, value in figures.items()}


def _line(title: str, summary: dict[str, Any], seconds: float) -> str:
    figures = ", ".join(f"{key} {value:.3f}" for key, value in summary["scores"].items())
    return f"{title}: {figures}  ({summary['questions']} questions, {seconds:.0f} s)"


def _say(text: str) -> None:
    log.line(log.printable(text))


def _show(scores: dict[str, dict[str, Any]]) -> None:
    """Prints one row per checkpoint and one column per headline figure; the best of each column is bold."""
    keys = [key for key in HEADLINES if any(key in row for row in scores.values())]
    best = {key: max(row[key] for row in scores.values() if key in row) for key in keys}
    lines: list[list[object]] = []
    for name, row in scores.items():
        cells: list[object] = [log.printable(name)]
        for key in keys:
            text = f"{row[key]:.3f}" if key in row else ""
            cells.append(log.bold(text) if row.get(key) == best[key] else text)
        lines.append(cells)
    log.table("held-out scores", ("checkpoint", *keys), lines)
