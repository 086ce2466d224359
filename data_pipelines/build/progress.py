"""Shows the progress of a run: on one line of a terminal, else every half minute. It reads the work folder alone."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from data_pipelines.build import parts as parts_lib
from data_pipelines.build.job import Job
from data_pipelines.build.part_files import PartDamaged, PartReader
from data_pipelines.build.parts import Part
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

_TERMINAL_S = 1.0
_LOG_S = 30.0
_FOOTERS = 1000  # at a time; a run that continues may find hundreds of thousands
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
    """Reads the footers of the parts' files, each once and not too many at a time."""

    def __init__(self, job: Job, parts: list[Part]):
        self._job = job
        self._parts = {part.digest: part for part in parts}
        self._done: dict[str, int] = {}
        self._read: set[str] = set()
        self._rows = 0
        self._failed = 0
        self._survivors = 0
        self._started = time.monotonic()
        self._look()
        self._rows_before = self._all_rows()

    def line(self) -> str:
        """Parts, pairs per second, share of pairs that are left, rows that failed."""
        self._look()
        rows = self._all_rows()
        speed = (rows - self._rows_before) / max(1e-3, time.monotonic() - self._started)
        kept = self._survivors / max(1, self._rows)
        about = "" if len(self._read) == len(self._done) else "about "
        failed = round(self._failed * rows / max(1, self._rows))
        numbers = f"{about}{rows:,} rows, {speed:,.0f} rows/s, {kept:.1%} left, {failed:,} failed"
        scored = self._scored()
        if scored is not None and len(self._done) + scored < len(self._parts):
            return f"scored {len(self._done) + scored:,} of {len(self._parts):,} parts: {numbers}"
        if len(self._done) < len(self._parts):
            return f"{len(self._done):,} of {len(self._parts):,} parts: {numbers}"
        steps = [name for name in storage.names(self._job.work) if name.startswith(("across-", "shards-"))]
        step = "comparing pairs" if not any(name.startswith("shards-") for name in steps) else "writing shards"
        return f"{step}: {numbers}"

    def _scored(self) -> int | None:
        """The parts that have CLIP scores and are not cleaned yet; None in a run without such scores."""
        folder = self._job.work / "scores"
        if self._job.clip is None or self._job.retry:
            return None
        names = storage.names(folder) if storage.is_folder(folder) else []
        digests = {name.partition(".")[0] for name in names}
        return len(digests & (self._parts.keys() - self._done.keys()))

    def _all_rows(self) -> int:
        """The rows of all finished parts; those whose footers were not read yet count as the average of the others."""
        return round(self._rows * len(self._done) / max(1, len(self._read)))

    def _look(self) -> None:
        attempts = parts_lib.attempts(self._job)
        self._done = {digest: attempt for digest, attempt in attempts.items() if digest in self._parts}
        unread = [digest for digest in self._done if digest not in self._read][:_FOOTERS]
        for digest, footer in zip(unread, parts_lib.each(self._footer, unread), strict=True):
            if footer is not None:
                self._read.add(digest)
                self._rows += footer["rows"]
                self._failed += footer["failed"]
                self._survivors += footer["survivors"]

    def _footer(self, digest: str) -> dict[str, Any] | None:
        try:
            return PartReader(parts_lib.part_file(self._job, self._parts[digest], self._done[digest])).footer
        except (PartDamaged, FileNotFoundError):
            return None
