"""The answers to one task as they arrive, stored in parts, so that an interrupted sweep continues where it stopped.

`<task>.parts/00000040.json` holds the rows that came after the first forty, with the fingerprint of what was asked. A
part is one small file that is written whole, because object stores cannot append. When all answers are there, they are
written to `<task>.jsonl`, then `<task>.json` marks the task as finished, and the parts are removed.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

from etils import epath

from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

PART_SECONDS = 10.0  # a killed sweep loses at most this much work; on an object store a part is one request


class Answers:
    """Rows of predictions by the number of their question.

    It is a context manager that writes all new rows when it ends, also after an error or Ctrl-C.

    Args:
      folder: the predictions of one checkpoint.
      task: name of the task.
      fingerprint: of checkpoint, records and settings. Parts with another fingerprint are removed.

    Attributes:
      rows: all rows so far, those of earlier runs included.
    """

    def __init__(self, folder: epath.Path, task: str, fingerprint: str) -> None:
        self._folder = folder
        self._task = task
        self._fingerprint = fingerprint
        self._parts = folder / f"{task}.parts"
        self.rows: dict[int, dict[str, Any]] = {}
        self._new: dict[int, dict[str, Any]] = {}
        self._written = time.monotonic()
        for name in storage.names(self._parts) if storage.is_folder(self._parts) else ():
            rows = _read_part(self._parts / name, fingerprint)
            if rows is None:
                storage.remove(self._parts / name)
            else:
                self.rows |= rows

    def __contains__(self, number: object) -> bool:
        return number in self.rows

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, StorageError):  # after a StorageError, writing was retried for minutes
            self._write_part()

    def add(self, rows: dict[int, dict[str, Any]]) -> None:
        """Adds the rows of one batch, and writes a part if the last part is old enough."""
        self.rows |= rows
        self._new |= rows
        if time.monotonic() - self._written >= PART_SECONDS:
            self._write_part()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes all rows in the order of the questions, then the summary, and removes the parts."""
        done = self._folder / f"{self._task}.json"
        storage.remove(done)  # it would vouch for rows with another fingerprint
        rows = [self.rows[number] for number in sorted(self.rows)]
        lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        artifacts.write_text(self._folder / f"{self._task}.jsonl", lines)
        artifacts.write_json(done, {"fingerprint": self._fingerprint, **summary})
        self._new = {}
        storage.remove(self._parts)

    def _write_part(self) -> None:
        if self._new:
            before = len(self.rows) - len(self._new)
            content = {"fingerprint": self._fingerprint, "rows": sorted(self._new.items())}
            artifacts.write_json(self._parts / f"{before:08d}.json", content)
            self._new = {}
        self._written = time.monotonic()


def _read_part(path: epath.Path, fingerprint: str) -> dict[int, dict[str, Any]] | None:
    """The rows of a part; None if the file is damaged or has another fingerprint."""
    try:
        content = artifacts.read_json(path)
    except UserError:
        return None
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        return None
    try:
        return {int(number): dict(row) for number, row in content["rows"]}
    except (KeyError, TypeError, ValueError):
        return None


def finished(folder: epath.Path, task: str, fingerprint: str) -> dict[str, Any] | None:
    """The summary of a task that was answered under this fingerprint; None if there is none or it is damaged."""
    summary = folder / f"{task}.json"
    if not storage.exists(summary) or not storage.exists(folder / f"{task}.jsonl"):
        return None
    try:
        content = artifacts.read_json(summary)
    except UserError:
        return None  # the task is answered again
    whole = isinstance(content, dict) and isinstance(content.get("scores"), dict)
    return content if whole and content.get("fingerprint") == fingerprint else None
