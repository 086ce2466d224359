"""Shows the progress of a run: on one line of a terminal, else every half minute. It reads the work folder alone."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.job import Job
from data_pipelines.build.part_files import PartDamaged, PartReader
from data_pipelines.build.parts import Part
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

_TERMINAL_S = 1.0
_LOG_S = 30.0
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def shown(job: Job, parts: list[Part]) -> Iterator[None]:
    """Shows the progress of a run while the block runs."""
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(Progress(job, parts), ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(progress: Progress, ended: threading.Event) -> None:
    on_terminal = sys.stdout.isatty()
    while not ended.wait(_TERMINAL_S if on_terminal else _LOG_S):
        with contextlib.suppress(OSError, StorageError, UserError):  # the run itself reports what is wrong
            line = progress.line()
            if on_terminal:
                sys.stdout.write(f"\r{line}\x1b[K")
                sys.stdout.flush()
            else:
                _log.info("%s", line)
    if on_terminal:
        sys.stdout.write("\r\x1b[K")
        sys.stdout.flush()


class Progress:
    """Reads the footers of the parts' files, each once."""

    def __init__(self, job: Job, parts: list[Part]):
        self._job = job
        self._parts = {part.digest: part for part in parts}
        self._rows: dict[str, int] = {}
        self._failed = 0
        self._survivors = 0
        self._started = time.monotonic()
        self._look()
        self._rows_before = sum(self._rows.values())

    def line(self) -> str:
        """Parts, pairs per second, share of pairs that are left, rows that failed."""
        self._look()
        rows = sum(self._rows.values())
        speed = (rows - self._rows_before) / max(1e-3, time.monotonic() - self._started)
        kept = self._survivors / max(1, rows)
        numbers = f"{rows:,} rows, {speed:,.0f} rows/s, {kept:.1%} left, {self._failed:,} failed"
        if len(self._rows) < len(self._parts):
            return f"{len(self._rows):,} of {len(self._parts):,} parts: {numbers}"
        steps = [name for name in storage.names(self._job.work) if name.startswith(("across-", "shards-"))]
        step = "comparing pairs" if not any(name.startswith("shards-") for name in steps) else "writing shards"
        return f"{step}: {numbers}"

    def _look(self) -> None:
        for digest, attempt in parts_lib.attempts(self._job).items():
            if digest not in self._parts or digest in self._rows:
                continue
            try:
                footer = PartReader(parts_lib.part_file(self._job, self._parts[digest], attempt)).footer
            except (PartDamaged, FileNotFoundError):
                continue
            self._rows[digest] = footer["rows"]
            self._failed += footer["failed"]
            self._survivors += footer["survivors"]
