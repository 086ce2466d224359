"""Ends a run that hangs: no step for much longer than steps take.

A thread of every process watches its steps. If none ends for too long, every process writes the stacks of its threads
to `stacks/` in the workdir, and all end with one sentence and the exit code RETRY. Several processes leave the verdict
to process 0, which knows from their heartbeats (`runtime.connection`) which of them did not come to the step, and which
may take any time because it compiles, evaluates or writes a checkpoint.
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
from typing import Self

from etils import epath

from qwenvl_jax.checkpoint.layout import STACKS
from qwenvl_jax.config import WatchdogConfig
from qwenvl_jax.runtime import distributed, exit_codes, phases, storage

_REMEMBERED = 101  # steps of which the median is taken
_WRITING = 10.0  # seconds after which a process ends although its stacks are not written


class Watchdog:
    """Watches the steps of a run while it is entered.

    Args:
      config: the limits.
      workdir: the run's folder.
    """

    def __init__(self, config: WatchdogConfig, workdir: epath.Path) -> None:
        self._config = config
        self._workdir = workdir
        self._step: int | None = None  # the last one; None before the first
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)  # seconds of steps
        self._waited = 0.0  # seconds since the last step or the end of a phase without a limit
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

    def step(self, step: int) -> None:
        """Notes that the loop has come to the end of a step."""
        if self._step is not None:
            self._durations.append(self._waited)
        self._step = step
        self._waited = 0.0

    @property
    def limit(self) -> float:
        """Seconds without a step after which the run hangs."""
        if self._step is None:
            return self._config.first_step_seconds
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(self._config.least_seconds, self._config.factor * median)

    def _watch(self) -> None:
        tick = min(1.0, self._config.least_seconds / 10)
        before = time.monotonic()
        while not self._ended.wait(tick):
            now = time.monotonic()
            # A process that was stopped and continued has not waited for all that time.
            self._waited += min(now - before, 2 * tick)
            before = now
            unlimited = phases.current().unlimited and self._step is not None
            if unlimited:
                self._waited = 0.0
            limit = self.limit
            if self._connection:
                compiling = self._step is None and self._waited <= limit
                self._connection.activity = {
                    "step": self._step or 0,
                    "phase": phases.current().name,
                    "unlimited": unlimited or compiling,
                }
            if self._waited > limit:
                self._end()

    def _end(self) -> None:
        if self._connection:
            self._connection.hung(self._waited)  # again at the next tick if process 0 lets the run go on
            return
        doing = phases.current().name
        doing = f", in the phase {doing!r}" if doing else ""
        self.write_stacks()
        print(
            f"error: the run hangs: no step has ended for {self._waited:.0f} s after step {self._step or 0}{doing}; "
            f"the stacks of all threads are in {self._workdir / STACKS}, and the same command continues",
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
