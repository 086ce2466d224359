"""Judges the finished answers of a sweep, and scores them anew.

    python -m qwenvl_jax.evaluate --judge --output=DIR --endpoint=URL --model=NAME [--key_variable=NAME]

Under the output folder of the sweep:
  judge/                                       the replies of the judge (`judge`)
  predictions/<checkpoint>/<benchmark>.jsonl   every row gets a `verdict`
  predictions/<checkpoint>/<benchmark>.json    the scores, and under `judge` its model and the rounds without a score
  scores.json                                  the scores
"""

from __future__ import annotations

from typing import Any

from etils import epath

from qwenvl_jax.evaluation.config import BenchmarkConfig
from qwenvl_jax.evaluation.judging.judge import JudgeSettings, judge_rows
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.results.figures import figures_of
from qwenvl_jax.evaluation.results.layout import PREDICTIONS, SCORES, read_config
from qwenvl_jax.runtime import artifacts, log, storage
from qwenvl_jax.runtime.errors import UserError

REPLIES = "judge"


def judge_sweep(output: epath.PathLike, settings: JudgeSettings) -> list[str]:
    """Judges every benchmark of a sweep that needs it.

    Args:
      output: the folder of the sweep.
      settings: how the judge is asked.

    Returns:
      A sentence for each checkpoint and benchmark.

    Raises:
      UserError: if the folder has no sweep, or no answers that are to be judged; see also `judge_rows`.
    """
    folder = storage.path(output)
    config = read_config(folder)
    judged = [item for item in config.benchmarks if item.benchmark.judged]
    scores = artifacts.read_json(folder / SCORES) if storage.exists(folder / SCORES) else {}
    sentences = []
    for checkpoint in config.checkpoints:
        for item in judged:
            predictions = folder / PREDICTIONS / checkpoint.name
            summary = answers.unchanged_summary(predictions, item.label)
            if summary is None:
                continue
            figures, sentence = _judge(predictions, item, summary, settings, folder / REPLIES)
            scores.setdefault(checkpoint.name, {}).update(figures)
            artifacts.write_json(folder / SCORES, scores)
            sentences.append(f"{checkpoint.name}, {item.label}: {sentence}")
            log.line(log.printable(sentences[-1]))
    if not sentences:
        raise UserError(f"{folder} has no finished answers that are to be judged; evaluate TouchStone first")
    return sentences


def _judge(
    predictions: epath.Path,
    item: BenchmarkConfig,
    summary: dict[str, Any],
    settings: JudgeSettings,
    replies: epath.Path,
) -> tuple[dict[str, float], str]:
    """Adds verdicts to the rows of one checkpoint; gives its scores and a sentence."""
    rows, judgement = judge_rows(answers.read_rows(predictions, item.label), settings, replies)
    figures = figures_of(item.benchmark, rows, lost=summary["questions"] - len(rows))
    scores = {f"{item.label}.{key}": figure.value for key, figure in figures.items()}
    judge = {"model": settings.model, "rounds": judgement.rounds, "scored": judgement.scored}
    summary |= {"scores": scores, "judge": judge | {"failed": judgement.failed}}
    answers.finish(predictions, item.label, summary["settings"], rows, summary)
    text = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
    return scores, f"{text or 'no score'}; {judgement.line()}"
