"""Ends a run that hangs: no step, or no checkpoint, for much longer than they take.

A thread of every process watches its steps, and the checkpoints that are written in the background. If none ends for
too long, every process writes the stacks of its threads to `stacks/` in the workdir, and all end with one sentence and
the exit code RETRY. Several processes leave the verdict to process 0, which knows from their heartbeats
(`runtime.connection`) which of them did not come to the step, which may take any time because it compiles, evaluates or
waits for a checkpoint, and whose checkpoint takes too long.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from typing import Protocol, Self

from etils import epath

from qwenvl_jax.checkpoint.layout import STACKS
from qwenvl_jax.config import WatchdogConfig
from qwenvl_jax.runtime import distributed, exit_codes, phases, storage

_REMEMBERED = 101  # steps of which the median is taken
_WRITING = 10.0  # seconds after which a process ends although its stacks are not written


class Writer(Protocol):
    """What writes checkpoints in the background."""

    name: str

    @property
    def writing(self) -> int | None:
        """The step of the checkpoint that is being written, None if there is none."""


class _Lapse:
    """Counts the seconds of something that is done again and again, and knows how many it may take.

    Args:
      config: the limits.
      first: seconds that it may take until it has ended once.
    """

    def __init__(self, config: WatchdogConfig, first: float) -> None:
        self.seconds = 0.0  # since it has begun
        self._config = config
        self._first = first
        self._ended = False
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)

    def end(self, *, typical: bool = True) -> None:
        """Notes that it has ended, and begins anew; `typical`: whether it may take as long the next time."""
        if typical:
            self._durations.append(self.seconds)
        self._ended = True
        self.seconds = 0.0

    @property
    def limit(self) -> float:
        """Seconds after which it hangs."""
        if not self._ended:
            return self._first
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(self._config.least_seconds, self._config.factor * median)


class _Watched:
    """A writer, with the time of the checkpoint that it writes."""

    def __init__(self, writer: Writer, config: WatchdogConfig) -> None:
        self._writer = writer
        self._lapse = _Lapse(config, config.first_checkpoint_seconds)
        self._step: int | None = None

    def overdue(self, passed: float) -> str:
        """Counts `passed` further seconds; what is wrong if a checkpoint takes too long, else ""."""
        step = self._writer.writing
        if step != self._step:
            if self._step is not None:
                self._lapse.end()
            self._step = step
        elif step is not None:
            self._lapse.seconds += passed
        if self._lapse.seconds <= self._lapse.limit:
            return ""
        return f"the {self._writer.name} of step {step} is not written after {self._lapse.seconds:.0f} s"


class Watchdog:
    """Watches a run while it is entered.

    Args:
      config: the limits.
      workdir: the run's folder.
    """

    def __init__(self, config: WatchdogConfig, workdir: epath.Path) -> None:
        self._config = config
        self._workdir = workdir
        self._step: int | None = None  # the last one; None before the first
        self._lapse = _Lapse(config, config.first_step_seconds)  # since the last step, or a phase without a limit
        self._writers: list[_Watched] = []
        self._ended = threading.Event()
        self._connection = distributed.connection()

    def __enter__(self) -> Self:
        if self._config.least_seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            if self._connection:
                self._connection.write_stacks = self.write_stacks
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def watch(self, *writers: Writer) -> None:
        """Watches the checkpoints of these writers too."""
        self._writers = [_Watched(writer, self._config) for writer in writers]

    def step(self, step: int) -> None:
        """Notes that the loop has come to the end of a step."""
        self._lapse.end(typical=self._step is not None)  # the first one compiles
        self._step = step

    @property
    def limit(self) -> float:
        """Seconds without a step after which the run hangs."""
        return self._lapse.limit

    def _watch(self) -> None:
        tick = min(1.0, self._config.least_seconds / 10)
        before = time.monotonic()
        while not self._ended.wait(tick):
            now = time.monotonic()
            # A process that was stopped and continued has not waited for all that time.
            passed = min(now - before, 2 * tick)
            before = now
            unlimited = phases.current().unlimited
            self._lapse.seconds = 0.0 if unlimited else self._lapse.seconds + passed
            late = self._lapse.seconds > self.limit
            overdue = next(filter(None, [watched.overdue(passed) for watched in self._writers]), "")
            if self._connection:
                compiling = self._step is None and not late
                self._connection.activity = {
                    "step": self._step or 0,
                    "phase": phases.current().name,
                    "unlimited": unlimited or compiling,
                    "overdue": overdue,
                }
            if late or overdue:
                self._end(overdue)

    def _end(self, overdue: str) -> None:
        """Ends the run; `overdue` says which checkpoint takes too long, "" if no step ends."""
        seconds = self._lapse.seconds
        if self._connection:
            self._connection.hung(seconds)  # again at the next tick if process 0 lets the run go on
            return
        doing = phases.current().name
        doing = f", in the phase {doing!r}" if doing else ""
        why = overdue or f"no step has ended for {seconds:.0f} s after step {self._step or 0}{doing}"
        self.write_stacks()
        print(
            f"error: the run hangs: {why}; the stacks of all threads are in {self._workdir / STACKS}, and the same "
            "command continues",
            file=sys.stderr,
            flush=True,
        )
        os._exit(exit_codes.RETRY)

    def write_stacks(self) -> None:
        """Writes the stacks of all threads of this process to the workdir, if that is possible within seconds."""
        text = stacks()
        name = f"{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}_process{distributed.process_index()}.txt"

        def write() -> None:
            storage.make_folder(self._workdir / STACKS)
            storage.write_bytes(self._workdir / STACKS / name, text.encode())
            written.set()

        written = threading.Event()
        threading.Thread(target=write, name="stacks", daemon=True).start()
        if not written.wait(_WRITING):
            print(text, file=sys.stderr, flush=True)


def stacks() -> str:
    """The Python stacks of all threads of this process, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sys._current_frames()
    out = io.StringIO()
    print(f"phase: {phases.current().name or 'between phases'}", file=out)
    for ident in sorted(frames, key=lambda ident: (ident != main, ident)):
        print(f"\nthread {names.get(ident, 'of another library')} ({ident}):", file=out)
        with contextlib.suppress(Exception):  # a frame may end while it is printed
            out.write("".join(traceback.format_stack(frames[ident])))
    return out.getvalue()
