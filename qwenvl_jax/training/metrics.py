"""Numbers of a run: collected on the devices, fetched every `log_every` steps, written to files and the terminal.

`metrics.jsonl` gets one line per log step. Everything but the group `timing` is a function of the config and the
seed: a run that was killed and continued leaves the same lines as an unbroken one, each once. On a disk a line can be
read at once, on gs:// after a minute or with the next checkpoint (`runtime.growing_file`).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qwenvl_jax.checkpoint.layout import EVENTS, METRICS
from qwenvl_jax.chips import peak_flops
from qwenvl_jax.config import Config
from qwenvl_jax.models.flops import Work, training_flops
from qwenvl_jax.runtime import log, storage
from qwenvl_jax.runtime.distributed import is_primary
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.events import EventWriter
from qwenvl_jax.runtime.growing_file import GrowingFile
from qwenvl_jax.training.step import Metrics

# Steps in a row without a finite loss and gradient before the run is given up.
MAX_SKIPPED = 20


class Window:
    """The metrics since the last log step: some still on the devices, some fetched (`values`)."""

    def __init__(self, values: list[dict[str, float]] | None = None):
        self._values = list(values or [])
        self._pending: list[Metrics] = []

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of a step without waiting for them."""
        self._pending.append(metrics)

    def wait_for_previous(self) -> None:
        """Waits for the step before the last one, so that the host runs ahead by no more than one batch."""
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2])

    def values(self) -> list[dict[str, float]]:
        """Fetches what is pending and returns all steps of the window, oldest first, as JSON values."""
        fetched = jax.device_get(self._pending)
        self._values += [{key: value.item() for key, value in step.items()} for step in fetched]
        self._pending = []
        return list(self._values)

    def clear(self) -> None:
        """Begins the next window; call it after `values`."""
        self._values = []


def summarize(values: list[dict[str, float]]) -> dict[str, float]:
    """One line out of the steps of a window.

    `loss` is per supervised token over the window; tokens, images and skipped steps are summed; the rest is that of
    the last step.
    """
    supervised = sum(step["supervised_tokens"] for step in values)
    line = dict(values[-1])
    finite = [step for step in values if not step["skipped"]]
    if finite and supervised:
        tokens = sum(step["supervised_tokens"] for step in finite)
        line["loss"] = sum(step["loss"] * step["supervised_tokens"] for step in finite) / max(tokens, 1)
    for key in ("tokens", "supervised_tokens", "images", "skipped"):
        line[key] = sum(step[key] for step in values)
    return line


class Log:
    """Writes the log lines of a run to `metrics.jsonl`, TensorBoard events and the terminal.

    Args:
      workdir: the run's folder.
      config: its config.
      start: the step that the run continues from; later lines of an earlier attempt are removed.
      mesh: its devices, for the utilisation.
    """

    def __init__(self, workdir: epath.Path, config: Config, start: int, mesh: Mesh):
        self._config = config
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = peak * mesh.size if peak else None
        self._skipped = 0
        self._clock, self._logged = time.monotonic(), start
        self._files: list[GrowingFile | EventWriter] = []
        self._progress: Progress | None = None
        if not is_primary():
            return
        kept = "".join(lines_up_to(workdir / METRICS, start))
        self._lines = GrowingFile(workdir / METRICS, kept.encode())
        self._events = EventWriter(workdir / EVENTS, start + 1 if start else None)
        self._files = [self._lines, self._events]
        if log.console().is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=log.console(),
            )
            self._task = self._progress.add_task(config.train.stage, total=config.train.steps, completed=start, note="")
            self._progress.start()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def write(self, step: int, values: list[dict[str, float]], counters: dict[str, Any]) -> None:
        """Writes the line of `step`.

        Args:
          step: steps taken so far.
          values: of the window that ends here.
          counters: totals of the data loader.

        Raises:
          UserError: if loss or gradients were not finite for too many steps in a row.
        """
        now, steps = time.monotonic(), step - self._logged  # of this attempt: a window may have begun in the last one
        seconds = max(now - self._clock, 1e-9)
        self._clock, self._logged = now, step
        line = {"step": step, **summarize(values)}
        own = summarize(values[-steps:])
        timing = {
            "seconds_per_step": seconds / steps,
            "images_per_second": own["images"] / seconds,
            "tokens_per_second": own["tokens"] / seconds,
        }
        if self._peak:
            work = Work(own["tokens"], self._config.data.sequence_length, own["supervised_tokens"], own["images"])
            timing["mfu"] = sum(training_flops(self._config, work).values()) / seconds / self._peak
        if self._files:
            self._lines.add((json.dumps({**line, "data": counters, "timing": timing}) + "\n").encode())
            train = {f"train/{key}": value for key, value in line.items() if key != "step"}
            self._events.add(step, train | {f"timing/{key}": value for key, value in timing.items()})
            self._show(step, line, timing)
        self._count_skipped(step, values)

    def flush(self) -> None:
        """Sees to it that every line so far can be read by others."""
        for file in self._files:
            file.flush()

    def _show(self, step: int, line: dict[str, float], timing: dict[str, float]) -> None:
        note = f"loss {line['loss']:.4f}  grad norm {line['grad_norm']:.3f}"
        if self._progress:
            self._progress.update(self._task, completed=step, note=note)
            return
        left = (self._config.train.steps - step) * timing["seconds_per_step"]
        mfu = f"  MFU {timing['mfu']:.1%}" if "mfu" in timing else ""
        skipped = f"  skipped {line['skipped']:.0f}" if line["skipped"] else ""
        log.line(
            f"step {step:>6}/{self._config.train.steps}  {note}  rate {line['learning_rate']:.2e}  "
            f"{timing['seconds_per_step']:.3f} s/step  {timing['images_per_second']:.1f} images/s  "
            f"{timing['tokens_per_second']:.0f} tokens/s{mfu}{skipped}  {_clock(left)} left"
        )
        sys.stdout.flush()

    def _count_skipped(self, step: int, values: list[dict[str, float]]) -> None:
        for value in values:
            self._skipped = self._skipped + 1 if value["skipped"] else 0
            if self._skipped >= MAX_SKIPPED:
                raise UserError(
                    f"loss or gradients were not finite for {self._skipped} steps in a row, up to step {step}; lower "
                    "config.optimizer.peak_learning_rate and start again (the parameters kept their last finite values)"
                )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress:
            self._progress.stop()
        for file in self._files:
            file.close()


def lines_up_to(path: epath.Path, step: int) -> list[str]:
    """Lines of a metrics file that belong to the first `step` steps; a line cut short by a kill is left out."""
    kept = []
    try:
        lines = storage.read_bytes(path).decode(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    for text in lines:
        try:
            if text.endswith("\n") and json.loads(text)["step"] <= step:
                kept.append(text)
        except (ValueError, LookupError, TypeError):
            continue
    return kept


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
