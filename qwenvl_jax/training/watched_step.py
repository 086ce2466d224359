"""The training step as the loop takes it: counted in the ledger, and traced if that was asked for."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import jax
from etils import epath

from qwenvl_jax.config import WatchingConfig
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.training.ledger import Ledger
from qwenvl_jax.training.profiler import Profiler
from qwenvl_jax.training.state import State
from qwenvl_jax.training.step import Metrics, TrainStep


class WatchedStep:
    """Takes steps; active within a `with` block.

    Args:
      train_step: from `make_train_step`.
      settings: the run's `config.watching`.
      workdir: the run's folder.
      ledger: counts the first call as compilation: waiting for it, or compiling.
      compilation: from `compiled_ahead`. The first call waits for it and raises its error; it compiles if this is None.
    """

    def __init__(
        self,
        train_step: TrainStep,
        settings: WatchingConfig,
        workdir: epath.Path,
        ledger: Ledger,
        compilation: Future[None] | None,
    ) -> None:
        self._train_step = train_step
        self._compilation = compilation
        self._profiler = Profiler(settings, workdir)
        self._ledger = ledger
        self._compiled = False

    def __enter__(self) -> WatchedStep:
        self._profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profiler.__exit__(*error)

    def __call__(self, step: int, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes step number `step`, counted from 1; see `TrainStep`."""
        self._profiler.begin(step)
        if not self._compiled:
            with self._ledger.span("compilation"):
                if self._compilation is not None:
                    self._compilation.result()
                state, metrics = self._train_step(state, batch)
            self._compiled = True
        elif self._profiler.active:
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = self._train_step(state, batch)
        else:
            state, metrics = self._train_step(state, batch)
        if self._profiler.active:
            with self._ledger.span("other"):
                self._profiler.end(step, metrics)
        return state, metrics
