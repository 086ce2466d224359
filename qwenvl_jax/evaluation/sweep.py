"""Checkpoints x tasks on held-out records: predictions, scores and one table.

Under the output folder:
  predictions/<checkpoint>/<task>.jsonl   one line per question: the answer and what it was compared with
  predictions/<checkpoint>/<task>.json    its figures, and the fingerprint of what they belong to
  scores.json                             {checkpoint: {figure: value}}, the figures of `config.SCORE_KEYS`
  evaluation.json                         the resolved config

Every file is written whole or not at all. A run that was interrupted keeps the tasks that are finished, and a task is
only reused where checkpoint, records and settings are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config, config_hash, to_dict
from qwenvl_jax.data.examples import make_prompt
from qwenvl_jax.data.records import RecordReader
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.evaluation.config import SCORE_KEYS, CheckpointConfig, EvalConfig, TaskConfig
from qwenvl_jax.evaluation.decode import generate
from qwenvl_jax.evaluation.tasks.registry import TASKS
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

PLAIN_WIDTH = 120  # of lines in a log file
SCORES, EVALUATION, PREDICTIONS = "scores.json", "evaluation.json", "predictions"


def sweep(config: EvalConfig, console: Console | None = None) -> dict[str, dict[str, float]]:
    """Asks every checkpoint every task and writes the results under `config.output`.

    Returns:
      The content of scores.json.

    Raises:
      UserError: if a checkpoint or a record folder is missing, or the vocabulary does not fit a model.
    """
    console = console or Console(width=None if Console().is_terminal else PLAIN_WIDTH)
    output = epath.Path(config.output)
    tokenizer = load_tokenizer(config.tokenizer)
    readers = {task.name: RecordReader(task.records, task.split) for task in config.tasks}
    sources = {item.name: restore.find_source(item.workdir) for item in config.checkpoints}
    for source in sources.values():
        if tokenizer.vocab_size > source.config.model.decoder.vocab_size:
            raise UserError(
                f"the vocabulary has {tokenizer.vocab_size} ids, the model of {source.workdir} only "
                f"{source.config.model.decoder.vocab_size}; name the vocabulary it was trained with"
            )
    scores: dict[str, dict[str, float]] = {}
    for item in config.checkpoints:
        params, scores[item.name] = None, {}
        for task in config.tasks:
            mark = _fingerprint(config, item, task, sources[item.name], readers[task.name])
            figures = _finished(_folder(output, item), task, mark)
            if figures is None:
                if params is None:
                    params, _, _ = restore.load_params(item.workdir)
                figures = _run(config, item, task, params, sources[item.name].config, tokenizer, readers, mark, console)
            scores[item.name].update(figures)
    artifacts.write_json(output / SCORES, scores)
    artifacts.write_json(output / EVALUATION, to_dict(config))
    console.print(table(scores))
    return scores


def _folder(output: epath.Path, item: CheckpointConfig) -> epath.Path:
    return output / PREDICTIONS / item.name


def _fingerprint(
    config: EvalConfig, item: CheckpointConfig, task: TaskConfig, source: restore.Source, reader: RecordReader
) -> str:
    """Sixteen hex digits that change with the checkpoint, the records or how they are asked."""
    lineage = epath.Path(item.workdir) / "lineage.json"
    parts = {
        "step": source.step,
        "config": config_hash(source.config),
        "lineage": lineage.read_text() if lineage.exists() else "",
        "metrics": _last_line(epath.Path(item.workdir) / "metrics.jsonl"),
        "records": reader.summary,
        "task": {key: value for key, value in dataclasses.asdict(task).items() if key != "records"},
        "image_size": item.image_size,
        "prompt_style": config.prompt_style,
        "vocabulary": hashlib.sha256(epath.Path(config.tokenizer.path).read_bytes()).hexdigest()
        if config.tokenizer.path
        else config.tokenizer.kind,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _last_line(path: epath.Path) -> str:
    return path.read_text().strip().rpartition("\n")[2] if path.exists() else ""


def _finished(folder: epath.Path, task: TaskConfig, mark: str) -> dict[str, float] | None:
    """The figures of a task that was answered before under the same fingerprint."""
    summary = folder / f"{task.name}.json"
    if not summary.exists() or not (folder / f"{task.name}.jsonl").exists():
        return None
    content = artifacts.read_json(summary)
    return content["scores"] if content.get("fingerprint") == mark else None


def _run(
    config: EvalConfig,
    item: CheckpointConfig,
    task_config: TaskConfig,
    params: dict[str, Any],
    run: Config,
    tokenizer: Tokenizer,
    readers: dict[str, RecordReader],
    mark: str,
    console: Console,
) -> dict[str, float]:
    task, reader = TASKS[task_config.name], readers[task_config.name]
    count = min(task_config.limit or len(reader), len(reader))
    questions = [question for index in range(count) for question in task.questions(reader[index], config.prompt_style)]
    queries = run.model.resampler.queries
    prompts = [make_prompt(q.pieces, q.images, tokenizer, queries, item.image_size) for q in questions]
    ids = {name: token for token, name in tokenizer.special_names.items()}
    compute = dataclasses.replace(run.compute, attention="auto")
    began = time.monotonic()
    title = f"{item.name} · {task.name}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task(title, total=len(prompts))
        answers = generate(
            params,
            run.model,
            compute,
            tokenizer,
            prompts,
            max_new=task_config.max_new,
            min_new=task_config.min_new,
            stop_ids=[ids[name] for name in task.stops],
            batch_size=config.batch_size,
            progress=lambda done: progress.advance(bar, done),
        )
    rows = [
        {"id": question.id, **task.read(tokenizer.decode(answer), question.about)}
        for question, answer in zip(questions, answers, strict=True)
    ]
    figures = task.score(rows)
    folder = _folder(epath.Path(config.output), item)
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    artifacts.write_text(folder / f"{task.name}.jsonl", lines)
    summary = {"fingerprint": mark, "questions": len(rows), "records": count, "scores": figures}
    artifacts.write_json(folder / f"{task.name}.json", summary)
    shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
    console.print(f"{title}: {shown}  ({len(rows)} questions, {time.monotonic() - began:.0f} s)")
    return figures


def table(scores: dict[str, dict[str, float]]) -> Table:
    """One row per checkpoint, one column per headline figure; the best of each column in bold."""
    keys = [key for key in SCORE_KEYS.values() if any(key in row for row in scores.values())]
    shown = Table(title="held-out scores")
    shown.add_column("checkpoint")
    for key in keys:
        shown.add_column(key, justify="right")
    best = {key: max(row[key] for row in scores.values() if key in row) for key in keys}
    for name, row in scores.items():
        cells = [f"{row[key]:.3f}" if key in row else "" for key in keys]
        shown.add_row(
            name, *(f"[bold]{c}[/bold]" if row.get(k) == best[k] else c for k, c in zip(keys, cells, strict=True))
        )
    return shown
