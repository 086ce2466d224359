"""After which steps a checkpoint is written.

The rules by number need no agreement. The rule by time does: the clocks of the processes differ, and all of them must
save after the same step. Process 0 decides and announces a step that no process has finished yet; the others look for
the announcement after each step, without waiting for it. A process is at most one step ahead of the devices
(`MetricsWindow.wait_for_previous`) and every step needs all processes, so when a process has finished step s + 2, all
have begun step s + 1 and see what process 0 announced after step s.
"""

from __future__ import annotations

import time

from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.checkpoint.manager import Checkpoints
from qwenvl_jax.config import Config
from qwenvl_jax.runtime import distributed

AHEAD = 2  # steps between the decision and the checkpoint if there are several processes


class Schedule:
    """Says after every step whether a checkpoint is due; all processes ask after every step.

    Args:
      config: the run's.
      checkpoints: of the run, those in its folder or the local ones; a checkpoint that the clock asks for begins only
        when the last one is written.
    """

    def __init__(self, config: Config, checkpoints: Checkpoints | LocalCheckpoints) -> None:
        rules = config.checkpoint
        local = isinstance(checkpoints, LocalCheckpoints)
        # An evaluation may be stopped at once, and its figures belong to a checkpoint; so one is written before it.
        durable = [config.train.checkpoint_every, rules.keep_every, config.evaluation.every]
        self._intervals = [rules.local_every] if local else durable
        self._seconds = 60 * (rules.local_minutes if local else rules.minutes)
        self._name = checkpoints.name
        self._checkpoints = checkpoints
        self._began = time.monotonic()  # of the last checkpoint
        self._last = 0  # step of the last checkpoint
        self._announced: int | None = None
        self._decisions = 0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step`."""
        due = any(interval and step % interval == 0 for interval in self._intervals)
        if self._seconds and self._time_is_up(step):
            due = True
        if due:
            self._began = time.monotonic()
            self._last = step
        return due

    def _time_is_up(self, step: int) -> bool:
        elapsed = time.monotonic() - self._began
        if distributed.process_count() == 1:
            return elapsed >= self._seconds and self._checkpoints.writing is None
        key = f"{self._name}/{self._decisions}"
        if self._announced is None and distributed.is_primary():
            if elapsed >= self._seconds and self._checkpoints.writing is None:
                self._announced = step + AHEAD
                distributed.announce(key, str(self._announced))
        elif self._announced is None and elapsed >= self._seconds / 2:  # before, process 0 cannot have decided
            text = distributed.announced(key)
            self._announced = None if text is None else int(text)
        if self._announced != step:
            return False
        self._announced = None
        self._decisions += 1
        return self._last <= step - AHEAD  # else another rule was faster
