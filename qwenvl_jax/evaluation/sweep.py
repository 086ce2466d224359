"""Asks every checkpoint every benchmark: predictions and scores (the tables are made by `report`).

Under the output folder:
  predictions/<checkpoint>/<benchmark>.jsonl   one line per question: the answer and what it was compared with
  predictions/<checkpoint>/<benchmark>.json    its figures, and the fingerprint of what they belong to
  predictions/<checkpoint>/<benchmark>.parts   answers of a benchmark that is not finished (`answers`)
  submissions/<checkpoint>/<benchmark>/        the file for the server of a benchmark whose truth is hidden
  scores.json                                  {checkpoint: {figure: value}} of all finished benchmarks
  evaluation.json                              the resolved config, written before the first question
  progress.json                                the benchmarks to ask (`progress`), until all are finished

Every file is written whole or not at all. An interrupted sweep continues where it stopped. Answers are only reused if
checkpoint, prompt, pictures and settings are the same. If there are several processes, each answers its share of the
records with its own devices, and process 0 brings the shares together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint.starting_point import StartingPoint, find_starting_point
from qwenvl_jax.config import to_dict
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.tokenizer import load_tokenizer, vocabulary_digest
from qwenvl_jax.evaluation import checkpoint, placement
from qwenvl_jax.evaluation.asking.questions import QuestionSet
from qwenvl_jax.evaluation.asking.records import asked_count, asking_of, exemplar_summary, reader_of
from qwenvl_jax.evaluation.asking.respondent import Respondent, answered_rows
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED, UPSTREAM, Benchmark
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.generation.sampling import Limits
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.results.figures import figures_of, read_clean
from qwenvl_jax.evaluation.results.layout import EVALUATION_FILE, PREDICTIONS, SCORES, SUBMISSIONS
from qwenvl_jax.evaluation.results.progress import Asked, remove_progress, write_progress
from qwenvl_jax.runtime import artifacts, distributed, folder_lock, log, storage

NAMED = 20  # scores.json names at most this many unanswered questions of a benchmark; the benchmark's file names all


def sweep(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Asks every checkpoint every benchmark and writes the results under `config.output`.

    Returns:
      The content of scores.json.

    Raises:
      UserError: if another sweep writes into the folder, a checkpoint or a record folder is missing, the vocabulary
        does not fit a model, or records cannot be scored. All of this is checked before the first question is asked.
    """
    with _alone_in(config.output):
        run = _Sweep(config)
        run.begin()
        for item in config.checkpoints:
            run.evaluate(item)
        run.end()
    return run.scores


@contextlib.contextmanager
def _alone_in(output: str) -> Iterator[None]:
    """Keeps other sweeps out of a folder of a disk while the block runs; process 0 has the lock for all."""
    refusal = f"another process evaluates into {output}; wait for its end, end it, or name another --output"
    with contextlib.ExitStack() as held:

        def claim() -> None:
            held.enter_context(folder_lock.locked(output, refusal))
            held.enter_context(folder_lock.removed_if_empty(output))

        distributed.from_primary(claim)
        yield


class _Subject:
    """A checkpoint under evaluation. Its parameters are only read if a question has to be asked."""

    def __init__(self, config: CheckpointConfig, starting_point: StartingPoint, mesh: Mesh, settings: EvalConfig):
        self.config = config
        self.starting_point = starting_point
        self._mesh = mesh
        self._settings = settings

    @functools.cached_property
    def respondent(self) -> Respondent:
        model = placement.load(self.starting_point, self._mesh, self._settings.dtype)
        return Respondent(model, self._mesh, self._settings.batch_size, self.config.image_size)

    @property
    def encoded(self) -> int:
        """How many pictures the model has encoded so far."""
        return self.respondent.encoded if "respondent" in vars(self) else 0

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """JSON values that change with the weights, and with how they are computed."""
        return {
            **checkpoint.identity(self.starting_point),
            "image_size": self.config.image_size,
            "dtype": self._settings.dtype,
        }


class _Sweep:
    """The vocabulary and the opened benchmarks, which all checkpoints share, and the scores so far."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.mesh = placement.local_mesh(config.mesh)
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.readers = {item.label: reader_of(item) for item in config.benchmarks}
        for path in {benchmark.clean for benchmark in config.benchmarks if benchmark.clean}:
            read_clean(path)
        self.question_sets: dict[str, QuestionSet] = {}
        self.scores: dict[str, dict[str, Any]] = {item.name: {} for item in config.checkpoints}
        self._output = storage.path(config.output)
        self._counts: dict[str, int] = {}  # questions of a benchmark over all processes, known on process 0
        self._asked: dict[tuple[str, str], Asked] = {}
        for item in config.checkpoints:  # report all mistakes before the first answer
            subject = self._find(item)
            for benchmark in config.benchmarks:
                summary = self._finished(subject, benchmark)
                if summary is None:
                    self._questions(benchmark)
                    self._will_ask(subject, benchmark)
                else:
                    self._add(item, benchmark, summary)

    def begin(self) -> None:
        """Writes the files from which a report can be made if the sweep is killed."""
        if not distributed.is_primary():
            return
        artifacts.write_json(self._output / EVALUATION_FILE, to_dict(self.config))
        if not self._asked:
            return
        write_progress(self._output, self._asked.values())
        if any(self.scores.values()):
            artifacts.write_json(self._output / SCORES, self.scores)
        else:
            storage.remove(self._output / SCORES)  # of another sweep

    def evaluate(self, item: CheckpointConfig) -> None:
        """Asks one checkpoint all benchmarks. Without a step, it is now the newest of its run."""
        subject = self._find(item)
        for benchmark in self.config.benchmarks:
            summary = self._finished(subject, benchmark)
            if summary is None:
                summary = self._ask(subject, benchmark)
            self._add(item, benchmark, summary)
            if distributed.is_primary():
                artifacts.write_json(self._output / SCORES, self.scores)

    def end(self) -> None:
        """Shows the scores, after everything is finished."""
        if distributed.is_primary():
            remove_progress(self._output)
            _show(self.config, self.scores)

    def _add(self, item: CheckpointConfig, benchmark: BenchmarkConfig, summary: dict[str, Any]) -> None:
        """Adds the scores of a benchmark, and its questions that could not be asked."""
        scores = self.scores[item.name]
        scores |= summary["scores"]
        unanswered = scores.pop(UNANSWERED, {})
        unanswered.pop(benchmark.label, None)
        if missing := summary.get(UNANSWERED):
            unanswered[benchmark.label] = {"questions": len(missing), "first": missing[:NAMED]}
        if unanswered:
            scores[UNANSWERED] = unanswered

    def _will_ask(self, subject: _Subject, item: BenchmarkConfig) -> bool:
        """Notes that a benchmark is to be asked; says whether that is new."""
        key = (subject.config.name, item.label)
        asked = Asked(*key, self._counts[item.label], self._settings(subject, item), self._fingerprint(subject, item))
        is_new = self._asked.get(key) != asked
        self._asked[key] = asked
        return is_new

    def _find(self, item: CheckpointConfig) -> _Subject:
        """The checkpoint, the same one for all processes."""
        step = distributed.from_primary(lambda: find_starting_point(item.workdir, item.step).step)
        starting_point = find_starting_point(item.workdir, step)
        checkpoint.check_fits(starting_point, self.config.tokenizer, self.tokenizer, item.image_size)
        return _Subject(item, starting_point, self.mesh, self.config)

    def _folder(self, subject: _Subject) -> epath.Path:
        return self._output / PREDICTIONS / subject.config.name

    def _settings(self, subject: _Subject, item: BenchmarkConfig) -> str:
        """Hex digits that change with everything that an answer depends on but its question."""
        return _digest(
            subject.identity
            | {
                "vocabulary": self._vocabulary,
                "limits": [*item.token_limits, item.benchmark.stops],
            }
        )

    def _fingerprint(self, subject: _Subject, item: BenchmarkConfig) -> str:
        """Hex digits that change with the settings, the records, or how they are asked and scored."""
        asked = {key: value for key, value in dataclasses.asdict(item).items() if key not in ("records", "exemplars")}
        return _digest(
            {
                "settings": self._settings(subject, item),
                "records": self.readers[item.label].summary,
                "benchmark": asked,
                "exemplars": exemplar_summary(item),
                "style": self.config.prompt_style if item.benchmark.task != EVALUATION else "",
            }
        )

    @functools.cached_property
    def _vocabulary(self) -> str:
        return vocabulary_digest(self.config.tokenizer)

    def _finished(self, subject: _Subject, item: BenchmarkConfig) -> dict[str, Any] | None:
        fingerprint = self._fingerprint(subject, item)
        return distributed.from_primary(lambda: answers.finished(self._folder(subject), item.label, fingerprint))

    def _questions(self, item: BenchmarkConfig) -> QuestionSet:
        """This process' share of the questions of a benchmark."""
        if item.label not in self.question_sets:
            reader = self.readers[item.label]
            share = _share(asked_count(item, reader))
            with log.progress(f"opening {item.label}", len(share)) as advance:
                self.question_sets[item.label] = QuestionSet(
                    item.benchmark, reader, share, self.tokenizer, asking_of(item, self.config.prompt_style), advance
                )
            questions = self.question_sets[item.label]
            self._counts[item.label] = sum(distributed.gather(len(questions) + len(questions.lost)))
        return self.question_sets[item.label]

    def _ask(self, subject: _Subject, item: BenchmarkConfig) -> dict[str, Any]:
        """Asks the questions of one benchmark that have no answer yet; writes and returns the summary."""
        began = time.monotonic()
        questions = self._questions(item)
        if self._will_ask(subject, item) and distributed.is_primary():  # of a checkpoint that is newer than the sweep
            write_progress(self._output, self._asked.values())
        settings = self._settings(subject, item)
        folder = self._folder(subject)
        title = f"{subject.config.name} · {item.label}"
        limits = Limits(*item.token_limits, self._stop_ids(item.benchmark))
        encoded = subject.encoded
        with answers.Answers(folder, item.label, settings) as known:
            rows = answered_rows(questions, known.known, known.add, lambda: subject.respondent, limits, title)
        share = {
            "rows": rows,
            "lost": [dataclasses.asdict(lost) for lost in questions.lost],
            "seconds": time.monotonic() - began,
            "encoded": subject.encoded - encoded,
        }
        shares = _all_shares(folder, item.label, share)

        def finish() -> dict[str, Any]:
            rows = [row for share in shares for row in share["rows"]]
            summary = _summary(item, rows, [lost for share in shares for lost in share["lost"]])
            summary["seconds"] = round(max(share["seconds"] for share in shares), 3)
            summary["pictures_encoded"] = sum(share["encoded"] for share in shares)  # in this run
            summary["step"] = subject.starting_point.step
            summary["fingerprint"] = self._fingerprint(subject, item)
            if item.benchmark.submission:
                where = self._output / SUBMISSIONS / subject.config.name / item.label
                for name, content in item.benchmark.submission(rows).items():
                    storage.write_bytes(where / name, content)
            answers.finish(folder, item.label, settings, rows, summary)
            return summary

        summary = distributed.from_primary(finish)
        _say(_line(title, summary, time.monotonic() - began))
        if missing := summary.get(UNANSWERED):
            first = f"{missing[0]['id']}: {missing[0]['why']}"
            _say(f"  {len(missing)} could not be asked and count as wrong, the first is {first}")
        return summary

    def _stop_ids(self, benchmark: Benchmark) -> tuple[int, ...]:
        return tuple(self.tokenizer.special_by_name[name] for name in benchmark.stops)


def _share(count: int) -> range:
    """The records of this process: contiguous, so that neighbouring questions about one picture stay together."""
    processes, process = distributed.process_count(), distributed.process_index()
    return range(count * process // processes, count * (process + 1) // processes)


def _all_shares(folder: epath.Path, label: str, share: dict[str, Any]) -> list[dict[str, Any]]:
    """On process 0 the shares of all processes in their order, once all have finished; elsewhere this one."""
    processes = distributed.process_count()
    if processes == 1:
        return [share]
    if not distributed.is_primary():
        answers.write_share(folder, label, distributed.process_index(), share)
    distributed.gather(label)
    if not distributed.is_primary():
        return [share]
    return [share, *(answers.read_share(folder, label, process) for process in range(1, processes))]


def _summary(item: BenchmarkConfig, rows: list[dict[str, Any]], lost: list[dict[str, str]]) -> dict[str, Any]:
    """The figures of a finished benchmark, and the questions that could not be asked."""
    summary: dict[str, Any] = {
        "questions": len(rows) + len(lost),
        "tokens": sum(row["tokens"] for row in rows),
        "scores": scores_of(item, rows, len(lost)),
    }
    missing = [*lost, *({"id": row["id"], "why": row[UNANSWERED]} for row in rows if UNANSWERED in row)]
    repeated = len(rows) - len({row["id"] for row in rows})
    if repeated:
        summary["repeated_ids"] = repeated
        _say(f"  {item.label}: {repeated} questions have the id of another question; each counts")
    return summary | ({UNANSWERED: missing} if missing else {})


def scores_of(item: BenchmarkConfig, rows: list[dict[str, Any]], lost: int) -> dict[str, float]:
    """Scores over all questions. A record that cannot be read counts as one average question answered wrong."""
    figures = figures_of(item.benchmark, rows, lost=lost)
    prefix = item.score_prefix
    scores = {f"{prefix}{key}": figure.value for key, figure in figures.items()}
    for key, figure in figures.items():
        if figure.upstream_exact is not None:
            scores[f"{prefix}{key}{UPSTREAM}"] = figure.upstream_exact.value
    return scores


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _line(title: str, summary: dict[str, Any], seconds: float) -> str:
    figures = ", ".join(f"{key.rpartition('.')[2]} {value:.3f}" for key, value in summary["scores"].items())
    return f"{title}: {figures or 'answered'}  ({summary['questions']} questions, {seconds:.0f} s)"


def _say(text: str) -> None:
    log.line(log.printable(text))


def _show(config: EvalConfig, scores: dict[str, dict[str, Any]]) -> None:
    """Prints one row per checkpoint and one column per headline figure; the best of each column is bold."""
    keys = [key for key in config.headlines if any(key in row for row in scores.values())]
    best = {key: max(row[key] for row in scores.values() if key in row) for key in keys}
    lines: list[list[object]] = []
    for name, row in scores.items():
        cells: list[object] = [log.printable(name)]
        for key in keys:
            text = f"{row[key]:.3f}" if key in row else ""
            cells.append(log.bold(text) if row.get(key) == best[key] else text)
        lines.append(cells)
    if keys:
        log.table("held-out scores", ("checkpoint", *keys), lines)
