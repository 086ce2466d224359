"""The progress of a run on the terminal: a bar, or one line per log step if the output is not a terminal.

A line has at most 160 columns if the stage has up to four tasks; it is one line:

    step  1200/19000  loss 2.3412  cap 2.10 vqa 2.77 ocr 1.92  lr 5.0e-5 vit 4.1e-5  norm 0.81  1.204 s  412k tok/s
    1.9k img/s MFU 41% wait 3%  ETA 5:12:40
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qwenvl_jax.config import Config
from qwenvl_jax.runtime import log
from qwenvl_jax.training.goodput import clock

DATA_WAIT = 0.03  # share of the wall time from which the wait for data is shown

# Tasks as a line names them.
SHORT_TASKS = {
    "caption": "cap",
    "vqa": "vqa",
    "grounding": "gr",
    "ref_grounding": "ref",
    "grounded_caption": "gcap",
    "ocr": "ocr",
    "text": "txt",
    "dialogue": "dlg",
}


class Display:
    """Shows how far a stage is.

    Args:
      config: the run's.
      start: steps taken before.
    """

    def __init__(self, config: Config, start: int) -> None:
        self._config = config
        self._steps = config.train.steps
        self._bar: Progress | None = None
        if log.console().is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=log.console(),
            )
            self._task = self._bar.add_task(config.train.stage, total=self._steps, completed=start, note="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(
        self, step: int, line: Mapping[str, float], by_task: Mapping[str, float | None], timing: Mapping[str, float]
    ) -> None:
        """Shows the line of a log step, in short beside the bar.

        Args:
          step: steps taken so far.
          line: the metrics of the window.
          by_task: the loss of each task of the mixture.
          timing: speeds and shares of the window.
        """
        share = timing["data_wait_share"]
        data_wait = f" wait {share:.0%}" if share >= DATA_WAIT else ""
        if self._bar:
            note = f"loss {line['loss']:.4f}  norm {line['grad_norm']:.3f}{data_wait}"
            self._bar.update(self._task, completed=step, note=note)
            return
        seconds_left = (self._steps - step) * timing["seconds_per_step"]
        mfu = f" MFU {timing['mfu']:.0%}" if "mfu" in timing else ""
        skipped = f"  skipped {line['skipped']:.0f}" if line["skipped"] else ""
        log.line(
            f"step {step:>{len(str(self._steps))}}/{self._steps}  loss {line['loss']:.4f}{losses(by_task)}  "
            f"lr {rates(self._config, line['learning_rate'])}  norm {line['grad_norm']:.2f}  "
            f"{timing['seconds_per_step']:.3f} s  {_speed(timing['tokens_per_second'])} tok/s "
            f"{_speed(timing['images_per_second'])} img/s{mfu}{data_wait}{skipped}  ETA {clock(seconds_left)}"
        )
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()


def losses(by_task: Mapping[str, Any]) -> str:
    """The loss of every task; nothing if there is only one task."""
    if len(by_task) < 2:
        return ""
    numbers = {task: "-" if loss is None else f"{loss:.2f}" for task, loss in by_task.items()}
    shown = [f"{SHORT_TASKS.get(task, task)} {number}" for task, number in numbers.items()]
    return f"  {' '.join(shown)}"


def rates(config: Config, rate: float) -> str:
    """The full rate, and that of the ViT's lowest layer if it differs."""
    optimizer = config.optimizer
    if "vit" not in config.train.trainable or optimizer.vit_layer_decay == 1:
        return _rate(rate)
    lowest = rate * optimizer.vit_layer_decay**config.model.vit.layers
    if config.train.trainable == ("vit",):
        return f"vit {_rate(lowest)} to {_rate(rate)}"
    return f"{_rate(rate)} vit {_rate(lowest)}"


def _rate(value: float) -> str:
    """Two digits and an exponent without zeros: 5.0e-5."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _speed(value: float) -> str:
    """Three digits at most before a unit: 12.3, 456, 1.2k, 412k, 3.4M."""
    for unit in ("", "k", "M"):
        if value < 999.5 or unit == "M":
            break
        value /= 1000
    return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
