"""The log of a run: lines of `metrics.jsonl`, TensorBoard events and the terminal.

`metrics.jsonl` gets one line per log step. Everything except the group `timing` is a function of config and seed: a run
that was killed and continued leaves the same lines as an unbroken run, each once. On a disk a line can be read at once,
on gs:// after a minute or with the next checkpoint (`runtime.growing_file`).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint.layout import EVALUATIONS, EVENTS, METRICS
from qwenvl_jax.chips import peak_flops
from qwenvl_jax.config import Config
from qwenvl_jax.models.flops import Work, training_flops
from qwenvl_jax.runtime import json_lines, log, phases
from qwenvl_jax.runtime.distributed import is_primary
from qwenvl_jax.runtime.events import EventWriter
from qwenvl_jax.runtime.growing_file import GrowingFile
from qwenvl_jax.training.display import Display
from qwenvl_jax.training.ledger import Ledger
from qwenvl_jax.training.metrics import StepValues, losses_by_source_and_task, summarize
from qwenvl_jax.training.observers import Observer
from qwenvl_jax.training.state import State
from qwenvl_jax.training.wandb_writer import WandbWriter


class MetricsLog:
    """Writes the log lines of a run; only the first process writes.

    Args:
      workdir: the run's folder.
      config: the run's.
      start: the step that the run continues from; later lines of an earlier start are removed.
      mesh: its devices, for the utilisation.
      ledger: counts what the time goes into; by default one that is not kept.
    """

    def __init__(
        self, workdir: epath.Path, config: Config, start: int, mesh: Mesh, ledger: Ledger | None = None
    ) -> None:
        self._ledger = ledger or Ledger()
        self._config = config
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = peak * mesh.size if peak else None
        self._clock = time.monotonic()
        self._logged = start
        self._data_wait = 0.0
        self._files: list[GrowingFile | EventWriter | WandbWriter] = []
        self._scalars: list[EventWriter | WandbWriter] = []  # where single numbers go
        self._display: Display | None = None
        if not is_primary():
            return
        self._lines = GrowingFile(workdir / METRICS, b"".join(lines_up_to(workdir / METRICS, start)))
        self._scalars = [EventWriter(workdir / EVENTS, start + 1 if start else None)]
        if config.watching.wandb:
            self._scalars.append(WandbWriter(workdir, config))
        self._files = [self._lines, *self._scalars]
        self._evaluations: GrowingFile | None = None
        if config.evaluation.every:
            measured = b"".join(lines_up_to(workdir / EVALUATIONS, start))
            self._evaluations = GrowingFile(workdir / EVALUATIONS, measured)
            self._files.append(self._evaluations)
        self._display = Display(config, start)

    def advance(self, step: int) -> None:
        """Notes that a step has been taken, and moves the progress bar."""
        self._ledger.advance(step)
        if self._display:
            self._display.advance(step)

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time that passes inside as a wait for the next batch."""
        start = time.monotonic()
        try:
            with self._ledger.span("data"), phases.phase("next batch"):
                yield
        finally:
            self._data_wait += time.monotonic() - start

    def write(self, step: int, values: list[StepValues], counters: dict[str, Any]) -> None:
        """Writes the line of `step`.

        Args:
          step: steps taken so far.
          values: of the window that ends here.
          counters: totals of the data loader.
        """
        line = {"step": step, **summarize(values)}
        losses = losses_by_source_and_task(values, self._config.data.mixture)
        timing = self._timing(step, values, counters)
        if self._display:
            self._lines.add((json.dumps({**line, **losses, "data": counters, "timing": timing}) + "\n").encode())
            scalars = {f"train/{key}": value for key, value in line.items() if key != "step"}
            groups: dict[str, Mapping[str, float | None]] = {**losses, "timing": timing}
            for group, numbers in groups.items():
                scalars |= {f"{group}/{key}": value for key, value in numbers.items() if value is not None}
            for writer in self._scalars:
                writer.add(step, scalars)
            self._display.show(step, line, losses["loss_by_task"], timing)

    @phases.phase("evaluation", unlimited=True)
    def observe(self, step: int, state: State, observers: Sequence[Observer]) -> None:
        """Writes what observers measure after `step`; the time that they take counts for no step."""
        began = time.monotonic()
        figures: dict[str, float] = {}
        with self._ledger.span("evaluation"):
            for observer in observers:
                figures |= observer(step, state)
        if self._display and self._evaluations:
            self._evaluations.add((json.dumps({"step": step, **figures}) + "\n").encode())
            for writer in self._scalars:
                writer.add(step, {f"evaluation/{key}": value for key, value in figures.items()})
            shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if "/" not in key)
            log.line(log.printable(f"step {step}, held out: {shown}"))
        self._clock += time.monotonic() - began

    def flush(self) -> None:
        """Makes every line so far readable for other processes."""
        for file in self._files:
            file.flush()

    def _timing(self, step: int, values: list[StepValues], counters: dict[str, Any]) -> dict[str, float]:
        """Speeds since the last line, or since the start: the window may have begun in an earlier start.

        The wait for data is that of this process. Its devices work on the previous step meanwhile, so they are idle for
        at most this long. Images that samples share are encoded once, so they count once.
        """
        now = time.monotonic()
        steps = step - self._logged
        seconds = max(now - self._clock, 1e-9)
        self._clock = now
        self._logged = step
        recent = summarize(values[-steps:])
        encoded_share = counters["images"] / max(1, counters["images"] + counters["shared"])
        images = recent["images"] * encoded_share
        timing = {
            "seconds_per_step": seconds / steps,
            "images_per_second": images / seconds,
            "tokens_per_second": recent["tokens"] / seconds,
            "data_wait_seconds": self._data_wait,
            "data_wait_share": self._data_wait / seconds,
        }
        self._data_wait = 0.0
        if self._peak:
            context = self._config.data.sequence_length
            work = Work(recent["tokens"], context, recent["supervised_tokens"], images)
            timing["mfu"] = sum(training_flops(self._config, work).values()) / seconds / self._peak
        return timing

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._display:
            self._display.close()
        for file in self._files:
            file.close()


def lines_up_to(path: epath.Path, step: int) -> list[bytes]:
    """Lines of a log for the first `step` steps; those that cannot be read are left out."""
    numbered = [(json_lines.step_of(line), text) for text, line in json_lines.read(path)]
    return [text for number, text in numbered if number is not None and number <= step]
