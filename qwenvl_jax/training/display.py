"""The progress of a run on the terminal: a bar, or one line per log step if the output is not a terminal."""

from __future__ import annotations

import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qwenvl_jax.runtime import log

DATA_WAIT = 0.03  # share of the wall time from which the wait for data is shown


class Display:
    """Shows how far a stage is.

    Args:
      stage: its name.
      steps: of the whole stage.
      start: steps taken before.
    """

    def __init__(self, stage: str, steps: int, start: int) -> None:
        self._steps = steps
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
            self._task = self._bar.add_task(stage, total=steps, completed=start, note="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, line: dict[str, float], timing: dict[str, float]) -> None:
        """Shows the line of a log step, in short beside the bar."""
        note = f"loss {line['loss']:.4f}  grad norm {line['grad_norm']:.3f}"
        share = timing["data_wait_share"]
        data_wait = f"  data wait {share:.0%}" if share >= DATA_WAIT else ""
        if self._bar:
            self._bar.update(self._task, completed=step, note=note + data_wait)
            return
        seconds_left = (self._steps - step) * timing["seconds_per_step"]
        mfu = f"  MFU {timing['mfu']:.1%}" if "mfu" in timing else ""
        skipped = f"  skipped {line['skipped']:.0f}" if line["skipped"] else ""
        log.line(
            f"step {step:>6}/{self._steps}  {note}  rate {line['learning_rate']:.2e}  "
            f"{timing['seconds_per_step']:.3f} s/step  {timing['images_per_second']:.1f} images/s  "
            f"{timing['tokens_per_second']:.0f} tokens/s{mfu}{data_wait}{skipped}  {_clock(seconds_left)} left"
        )
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
