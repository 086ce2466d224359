"""The ledger of a run: the kind of work that every second of every start went into.

At any moment the main thread is in one span, the innermost of those that are open; so the seconds of all kinds add up
to the time since the process began. `ledger.jsonl` in the run's folder has three kinds of lines, times in seconds since
1970:

    {"event": "start", "at": .., "step": 0, "host": .., "pid": .., "processes": .., "devices": ..}
    {"from": .., "to": .., "steps": [10, 20], "seconds": {"step": 11.9, "data": 0.1}}
    {"event": "end", "at": .., "code": 0, "reason": "finished"}

A thread of process 0 appends them. It also closes the open line from time to time, so that a start that is killed
loses little: its last line is its last sign of life. `training.goodput` adds all starts up.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from qwenvl_jax.checkpoint.layout import LEDGER
from qwenvl_jax.config import WatchingConfig
from qwenvl_jax.runtime import distributed, exit_codes, host_sync, log, storage
from qwenvl_jax.runtime.errors import StorageError, exit_on_user_error, one_line
from qwenvl_jax.runtime.growing_file import GrowingFile
from qwenvl_jax.training import goodput_export, wandb_writer
from qwenvl_jax.training.goodput_export import GoodputExport

KINDS = ("initialisation", "compilation", "data", "step", "checkpoint", "evaluation", "other")
# Spans of these kinds follow one another by the thousand and share lines; every other span has a line of its own.
_DENSE = ("data", "step")
_FETCHING = ("checkpoint", "evaluation")  # spans within which values are fetched from the devices
# Seconds between two signs of life: a hundredth of the age of the start, within these limits.
_SHORTEST, _LONGEST = 1.0, 30.0


class Ledger:
    """Counts what the time of one start goes into.

    Until `kept` opens the file, and on all processes but the first, it counts in memory alone.

    Args:
      began: when the start began, in seconds since 1970; by default now.
    """

    def __init__(self, began: float | None = None) -> None:
        self._since_1970 = time.time() - time.monotonic()  # a clock that is set while the run goes on changes nothing
        now = time.monotonic()
        self._counted = now if began is None else min(now, began - self._since_1970)
        self._began = self._counted
        self._line_began = self._counted
        self._spans = ["initialisation"]  # the innermost is the last
        self._seconds: dict[str, float] = {}
        self._step = 0
        self._line_step = 0
        self._lock = threading.Lock()
        self._lines: list[dict[str, Any]] = []  # not written yet

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Counts the time of the block as `kind`, one of KINDS, except for that of spans within it.

        Checkpoints and evaluations may fetch values from the devices (`runtime.host_sync`).
        """
        dense = kind in _DENSE
        fetches = host_sync.allowed() if kind in _FETCHING else contextlib.nullcontext()
        with self._lock:
            self._count(cut=not dense)
            self._spans.append(kind)
        try:
            with fetches:
                yield
        finally:
            with self._lock:
                self._count(cut=not dense)
                self._spans.pop()
                if kind == "step":
                    self._spans = ["other"]  # after the last step

    def advance(self, step: int) -> None:
        """Notes that `step` steps have been taken."""
        self._step = step

    @contextlib.contextmanager
    def kept(self, workdir: epath.Path, step: int, steps: int, goodput_job: str = "") -> Iterator[None]:
        """Writes the ledger into a run's folder while the block runs, and its summary at the end.

        A ledger that cannot be written is reported once; it never ends a run.

        Args:
          workdir: the run's folder, in which a run has begun.
          step: the step that this start continues from.
          steps: of the whole stage.
          goodput_job: a name under which the lines go to Google Cloud as well (`goodput_export`).
        """
        with self._lock:
            self._step = self._line_step = step
        if not distributed.is_primary():
            yield
            return
        writer = _Writer(workdir / LEDGER, GoodputExport(goodput_job) if goodput_job else None)
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "processes": jax.process_count(), "devices": devices}
        writer.add({"event": "start", "at": self._at(self._began), "step": step, **facts})
        stop = threading.Event()
        thread = threading.Thread(target=self._write_until, args=(stop, writer), name="ledger", daemon=True)
        thread.start()
        code = exit_codes.FINISHED
        reason = "finished"
        try:
            yield
            if self._step < steps:
                code = exit_codes.PREEMPTED
                reason = f"stopped after step {self._step}"
        except BaseException as error:
            code = code_of(error)
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise
        finally:
            stop.set()
            thread.join()
            with self._lock:
                self._count(cut=True)
                writer.add(*self._lines)
            writer.add({"event": "end", "at": self._at(self._counted), "code": code, "reason": reason})
            writer.close()

    def _count(self, *, cut: bool) -> None:
        """Adds the time since the last call to the innermost span; `cut` also ends the line."""
        now = time.monotonic()
        kind = self._spans[-1]
        self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._counted
        self._counted = now
        if not cut or now == self._line_began:
            return
        line = {
            "from": self._at(self._line_began),
            "to": self._at(now),
            "steps": [self._line_step, self._step],
            "seconds": {name: round(value, 6) for name, value in self._seconds.items()},
        }
        self._lines.append(line)
        self._line_began = now
        self._line_step = self._step
        self._seconds = {}

    def _at(self, moment: float) -> float:
        return round(self._since_1970 + moment, 6)

    def _write_until(self, stop: threading.Event, writer: _Writer) -> None:
        """The thread: writes what has come, and closes the open line."""
        while not stop.wait(min(_LONGEST, max(_SHORTEST, (time.monotonic() - self._began) / 100))):
            with self._lock:
                self._count(cut=True)
                lines, self._lines = self._lines, []
            writer.add(*lines)


class _Writer:
    """Appends lines to what earlier starts have written."""

    def __init__(self, path: epath.Path, export: GoodputExport | None) -> None:
        self._export = export
        self._path = path
        self._waiting: list[bytes] = []
        self._file: GrowingFile | None = None
        self._complained = False

    def add(self, *lines: dict[str, Any]) -> None:
        """Writes lines; those that cannot be written wait for the next call."""
        self._waiting += [(json.dumps(line) + "\n").encode() for line in lines]
        self._hand_on(lines)
        try:
            if self._file is None:
                self._file = GrowingFile(self._path, whole_lines(self._path))
            while self._waiting:
                self._file.add(self._waiting[0])
                self._waiting.pop(0)
        except (OSError, StorageError) as error:
            self._complain(error)
            if self._waiting and not self._waiting[0].startswith(b"\n"):
                self._waiting[0] = b"\n" + self._waiting[0]  # a part of it may have been written

    def close(self) -> None:
        """Writes what it can."""
        try:
            if self._file is not None:
                self._file.close()
        except (OSError, StorageError) as error:
            self._complain(error)

    def _hand_on(self, lines: Sequence[dict[str, Any]]) -> None:
        """Gives lines to the export, until it fails for the first time."""
        try:
            if self._export is not None:
                for line in lines:
                    self._export.add(line)
        except Exception as error:  # of a library and a service of others
            self._export = None
            log.line(f"warning: the goodput is no longer exported ({one_line(error)}); training goes on")

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.line(f"warning: {self._path} cannot be written ({one_line(error)}); training goes on")


def whole_lines(path: epath.Path) -> bytes:
    """The lines of a ledger, without one that a kill cut short; nothing if there is no ledger."""
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error; one of `exit_codes`."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), exit_on_user_error():
            raise error
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else exit_codes.ERROR
    except BaseException:
        return exit_codes.of_exception(error)


def check_exports(settings: WatchingConfig) -> None:
    """Raises UserError if a run shall be watched with a package that is not installed."""
    if settings.goodput_job:
        goodput_export.check_installed()
    if settings.wandb:
        wandb_writer.check_installed()


def process_began() -> float:
    """When this process began, in seconds since 1970, to a hundredth; now if the system does not say."""
    now = time.time()
    try:
        with open("/proc/uptime") as uptime, open("/proc/self/stat") as status:
            since_boot = float(uptime.read().split()[0])
            ticks = int(status.read().rpartition(")")[2].split()[19])
        return now - max(0.0, since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return now
