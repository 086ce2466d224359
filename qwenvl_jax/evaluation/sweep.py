"""Checkpoints x tasks on held-out records: predictions, scores and one table.

Under the output folder:
  predictions/<checkpoint>/<task>.jsonl   one line per question: the answer and what it was compared with
  predictions/<checkpoint>/<task>.json    its figures, and the fingerprint of what they belong to
  predictions/<checkpoint>/<task>.parts   answers of a task that is not finished
  scores.json                             {checkpoint: {figure: value}}, see `config.HEADLINES`
  evaluation.json                         the resolved config

Every file is written whole or not at all. A run that was interrupted goes on where it stopped, and answers are only
reused where checkpoint, records and settings are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qwenvl_jax.checkpoint.source import Source, find_source
from qwenvl_jax.config import to_dict
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer, vocabulary_digest
from qwenvl_jax.evaluation import checkpoint
from qwenvl_jax.evaluation.answers import Answers, finished
from qwenvl_jax.evaluation.config import HEADLINES, UNANSWERED, CheckpointConfig, EvalConfig, TaskConfig
from qwenvl_jax.evaluation.decode import generate_batch, group_by_length
from qwenvl_jax.evaluation.metrics.cider import check_tokenisation
from qwenvl_jax.evaluation.questions import Asked, QuestionSet
from qwenvl_jax.evaluation.tasks.registry import TASKS
from qwenvl_jax.evaluation.tasks.task import Task
from qwenvl_jax.runtime import artifacts, log, storage

PLAIN_WIDTH = 120  # of lines in a log file
NAMED = 20  # questions of a task that scores.json names where they could not be asked; their figures' file names all
SCORES, EVALUATION, PREDICTIONS = "scores.json", "evaluation.json", "predictions"


def sweep(config: EvalConfig, console: Console | None = None) -> dict[str, dict[str, Any]]:
    """Asks every checkpoint every task and writes the results under `config.output`.

    Returns:
      The content of scores.json.

    Raises:
      UserError: if a checkpoint or a record folder is missing, the vocabulary does not fit a model, or records cannot
        be scored: all of them are looked at before the first question is asked.
    """
    console = console or Console(width=None if Console().is_terminal else PLAIN_WIDTH)
    run = _Sweep(config, console)
    scores = {item.name: run.figures_of(item) for item in config.checkpoints}
    output = storage.path(config.output)
    artifacts.write_json(output / SCORES, scores)
    artifacts.write_json(output / EVALUATION, to_dict(config))
    console.print(table(scores))
    return scores


class _Sweep:
    """What all checkpoints share: the vocabulary and the opened tasks."""

    def __init__(self, config: EvalConfig, console: Console):
        self.config, self.console = config, console
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.readers = {task.name: RecordReader(task.records, task.split) for task in config.tasks}
        self.opened: dict[str, QuestionSet] = {}
        for task in config.tasks:
            check_tokenisation(task.tokenisation)
        for item in config.checkpoints:  # all mistakes before the first answer
            source = self._find(item)
            for task in config.tasks:
                if finished(self._folder(item), task.name, self._mark(item, task, source)) is None:
                    self._open(task)

    def figures_of(self, item: CheckpointConfig) -> dict[str, Any]:
        """The figures of all tasks of one checkpoint. Without a step, it is the newest when its turn comes."""
        source, params = self._find(item), None
        figures: dict[str, Any] = {}
        unanswered: dict[str, Any] = {}
        for task in self.config.tasks:
            mark = self._mark(item, task, source)
            summary = finished(self._folder(item), task.name, mark)
            if summary is None:
                if params is None:
                    params = checkpoint.load(source)
                summary = self._run(item, task, source, params, mark)
            figures |= summary["scores"]
            if missing := summary.get(UNANSWERED):
                unanswered[task.name] = {"questions": len(missing), "first": missing[:NAMED]}
        return figures | ({UNANSWERED: unanswered} if unanswered else {})

    def _find(self, item: CheckpointConfig) -> Source:
        source = find_source(item.workdir, item.wanted_step)
        checkpoint.check_fits(source, self.config.tokenizer, self.tokenizer, item.image_size)
        return source

    def _folder(self, item: CheckpointConfig) -> epath.Path:
        return storage.path(self.config.output) / PREDICTIONS / item.name

    def _mark(self, item: CheckpointConfig, task: TaskConfig, source: Source) -> str:
        """Sixteen hex digits that change with the checkpoint, the records or how they are asked and scored."""
        parts = {
            **checkpoint.identity(source),
            "records": self.readers[task.name].summary,
            "task": {key: value for key, value in dataclasses.asdict(task).items() if key != "records"},
            "image_size": item.image_size,
            "prompt_style": self.config.prompt_style,
            "vocabulary": self._vocabulary,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @functools.cached_property
    def _vocabulary(self) -> str:
        return vocabulary_digest(self.config.tokenizer)

    def _open(self, task: TaskConfig) -> QuestionSet:
        if task.name not in self.opened:
            reader = self.readers[task.name]
            count = min(task.limit or len(reader), len(reader))
            with _Bar(self.console, f"opening {task.name}", count) as advance:
                self.opened[task.name] = QuestionSet(
                    TASKS[task.name], reader, count, self.tokenizer, self.config.prompt_style, advance
                )
        return self.opened[task.name]

    def _run(
        self, item: CheckpointConfig, task: TaskConfig, source: Source, params: dict[str, Any], mark: str
    ) -> dict[str, Any]:
        """Asks one checkpoint the questions of one task that have no answer yet; writes and returns the summary."""
        asked, model = self._open(task), source.config.model
        kind, ids = TASKS[task.name], self.tokenizer.special_by_name
        ask = functools.partial(
            generate_batch, params, model, dataclasses.replace(source.config.compute, attention="auto"), self.tokenizer,
            rows=min(self.config.batch_size, len(asked)), max_new=task.max_new, min_new=task.min_new,
            stop_ids=[ids[name] for name in kind.stops],
        )  # fmt: skip
        queries, began, title = model.resampler.queries, time.monotonic(), f"{item.name} · {task.name}"
        groups = list(group_by_length(asked.sizes(queries), self.config.batch_size))
        with (
            Answers(self._folder(item), task.name, mark) as answers,
            _Bar(self.console, title, len(asked) - len(answers.rows)) as advance,
        ):
            for batch in asked.batches(groups, queries, item.image_size, answers.__contains__):
                answers.add(_answered(batch, kind, self.tokenizer, ask))
                advance(len(batch))
            rows = [answers.rows[number] for number in sorted(answers.rows)]
            figures = _figures(rows, kind, task, len(asked.lost))
            missing = [dataclasses.asdict(one) for one in asked.lost]
            missing += [{"id": row["id"], "why": row[UNANSWERED]} for row in rows if UNANSWERED in row]
            summary = {"questions": len(rows) + len(asked.lost), "records": asked.records, "scores": figures}
            summary |= {UNANSWERED: missing} if missing else {}
            answers.finish(summary)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        seconds = time.monotonic() - began
        self._say(f"{title}: {shown}  ({summary['questions']} questions, {seconds:.0f} s)")
        if missing:
            first = f"{missing[0]['id']}: {missing[0]['why']}"
            self._say(f"  {len(missing)} could not be asked and count as wrong, the first is {first}")
        return summary

    def _say(self, line: str) -> None:
        self.console.print(Text(log.printable(line)), soft_wrap=True)


def _answered(
    batch: list[Asked], task: Task, tokenizer: Tokenizer, ask: Callable[..., list[list[int]]]
) -> dict[int, dict[str, Any]]:
    """One row per question of a batch, also of those whose picture cannot be read."""
    good = [one for one in batch if one.prompt is not None]
    answers = iter(ask(prompts=[one.prompt for one in good]) if good else [])
    rows = {}
    for number, question, prompt, why in batch:
        if prompt is None:
            row = {**task.unanswered(question.about), UNANSWERED: why}
        else:
            row = task.read(tokenizer.decode(next(answers)), question.about)
        rows[number] = {"id": question.id, **row}
    return rows


def _figures(rows: list[dict[str, Any]], kind: Task, task: TaskConfig, lost: int) -> dict[str, float]:
    """Scores over all questions. A record that cannot be read counts as one average question answered wrong."""
    figures = kind.score(rows, tokenisation=task.tokenisation) if task.name == "caption" else kind.score(rows)
    return {key: value * len(rows) / (len(rows) + lost) if lost else value for key, value in figures.items()}


class _Bar:
    """A bar that goes when it is full; away from a terminal none. Gives the function that advances it."""

    def __init__(self, console: Console, title: str, total: int):
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Callable[..., None]:
        self._progress.__enter__()
        return functools.partial(self._progress.advance, self._task)

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)


def table(scores: dict[str, dict[str, Any]]) -> Table:
    """One row per checkpoint, one column per headline figure; the best of each column in bold."""
    keys = [key for key in HEADLINES if any(key in row for row in scores.values())]
    shown = Table(title="held-out scores")
    shown.add_column("checkpoint")
    for key in keys:
        shown.add_column(key, justify="right")
    best = {key: max(row[key] for row in scores.values() if key in row) for key in keys}
    for name, row in scores.items():
        cells = [Text(f"{row[key]:.3f}", "bold" if row[key] == best[key] else "") if key in row else "" for key in keys]
        shown.add_row(Text(name), *cells)
    return shown
