"""Benchmarks while a stage trains, on its mesh and with its parameters; no second copy of them is kept.

All processes ask all questions together, because the parameters are spread over all their devices. So take few
questions (`benchmarks[i].limit`); a sweep over the checkpoints (`sweep`) gives each process its share instead.
"""

from __future__ import annotations

import dataclasses
import json

from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint.layout import ANSWERS
from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.asking.questions import QuestionSet
from qwenvl_jax.evaluation.asking.records import asked_count, asking_of, reader_of
from qwenvl_jax.evaluation.asking.respondent import Respondent, answered_rows
from qwenvl_jax.evaluation.config import BenchmarkConfig, EvalConfig
from qwenvl_jax.evaluation.generation.sampling import Limits
from qwenvl_jax.evaluation.results.answers import Answer
from qwenvl_jax.evaluation.sweep import scores_of
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.params import merge
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.distributed import is_primary
from qwenvl_jax.training.state import State


class BenchmarkObserver:
    """Asks a state the benchmarks of an evaluation config; a `training.observers.Observer`.

    The answers are written to `<workdir>/answers/<step>/<benchmark>.jsonl`.

    Args:
      settings: its benchmarks, batch size and prompt style; the rest is not used.
      workdir: of the run.
      config, tokenizer, mesh: of the run.

    Raises:
      UserError: if records are missing or cannot be scored.
    """

    def __init__(
        self, settings: EvalConfig, workdir: epath.PathLike, config: Config, tokenizer: Tokenizer, mesh: Mesh
    ) -> None:
        self._settings = settings
        self._folder = storage.path(workdir) / ANSWERS
        self._config = config
        self._tokenizer = tokenizer
        self._mesh = mesh
        self._questions = {item.label: self._open(item) for item in settings.benchmarks}

    def __call__(self, step: int, state: State) -> dict[str, float]:
        """The scores of all benchmarks by name, as in scores.json."""
        compute = dataclasses.replace(self._config.compute, attention="auto")
        model = LoadedModel(merge(state.trainable, state.frozen), self._config.model, compute)
        respondent = Respondent(model, self._mesh, self._settings.batch_size, self._config.data.image_size)
        figures: dict[str, float] = {}
        for item in self._settings.benchmarks:
            figures |= self._ask(item, respondent, step)
        return figures

    def _open(self, item: BenchmarkConfig) -> QuestionSet:
        reader = reader_of(item)
        asking = asking_of(item, self._settings.prompt_style)
        return QuestionSet(item.benchmark, reader, range(asked_count(item, reader)), self._tokenizer, asking)

    def _ask(self, item: BenchmarkConfig, respondent: Respondent, step: int) -> dict[str, float]:
        questions = self._questions[item.label]
        stop_ids = tuple(self._tokenizer.special_by_name[name] for name in item.benchmark.stops)
        limits = Limits(*item.token_limits, stop_ids)
        known: dict[str, Answer] = {}

        def add(answer: Answer) -> None:
            known[answer.key] = answer

        rows = answered_rows(questions, known, add, lambda: respondent, limits, f"step {step} · {item.label}")
        if is_primary():
            lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
            artifacts.write_text(self._folder / f"{step:08d}" / f"{item.label}.jsonl", lines)
        return scores_of(item, rows, len(questions.lost))
