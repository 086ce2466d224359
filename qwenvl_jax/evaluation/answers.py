"""The answers to one task as they come in: kept in parts, so that an interrupted sweep goes on where it stopped.

`<task>.parts/00000040.json` holds the rows that came after the first forty, with the fingerprint of what was asked. A
part is one small file, written whole: nothing is ever appended, which object stores cannot do. When all are there they
become `<task>.jsonl`, then `<task>.json` says that the task is finished, and the parts go.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

from etils import epath

from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

PART_SECONDS = 10.0  # of answers that a killed sweep may lose; on an object store a part is one request


class Answers:
    """Rows by the number of their question.

    Args:
      folder: of the checkpoint's predictions.
      task: its name.
      mark: fingerprint of checkpoint, records and settings; parts of another one are removed.

    Used as a context manager: what is there when it ends is written, also after an error or Ctrl-C.
    """

    def __init__(self, folder: epath.Path, task: str, mark: str):
        self._folder, self._task, self._mark = folder, task, mark
        self._parts = folder / f"{task}.parts"
        self.rows: dict[int, dict[str, Any]] = {}
        self._new: dict[int, dict[str, Any]] = {}
        self._written = time.monotonic()
        for name in storage.names(self._parts) if storage.is_folder(self._parts) else ():
            rows = _read_part(self._parts / name, mark)
            if rows is None:
                storage.remove(self._parts / name)
            else:
                self.rows |= rows

    def __contains__(self, number: object) -> bool:
        return number in self.rows

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None or not issubclass(
            kind, StorageError
        ):  # storage that does not answer has been asked for minutes
            self._write_part()

    def add(self, rows: dict[int, dict[str, Any]]) -> None:
        """Takes the rows of one batch, and writes a part if the last one is old enough."""
        self.rows |= rows
        self._new |= rows
        if time.monotonic() - self._written >= PART_SECONDS:
            self._write_part()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes all rows in the order of the questions, then the summary, and removes the parts."""
        done = self._folder / f"{self._task}.json"
        storage.remove(done)  # it would vouch for rows of another fingerprint
        rows = [self.rows[number] for number in sorted(self.rows)]
        lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        artifacts.write_text(self._folder / f"{self._task}.jsonl", lines)
        artifacts.write_json(done, {"fingerprint": self._mark, **summary})
        self._new = {}
        storage.remove(self._parts)

    def _write_part(self) -> None:
        if self._new:
            before = len(self.rows) - len(self._new)
            content = {"fingerprint": self._mark, "rows": sorted(self._new.items())}
            artifacts.write_json(self._parts / f"{before:08d}.json", content)
            self._new = {}
        self._written = time.monotonic()


def _read_part(path: epath.Path, mark: str) -> dict[int, dict[str, Any]] | None:
    """The rows of a part; None if it is of another fingerprint, or is none."""
    try:
        content = artifacts.read_json(path)
    except UserError:
        return None
    if not isinstance(content, dict) or content.get("fingerprint") != mark:
        return None
    try:
        return {int(number): dict(row) for number, row in content["rows"]}
    except (KeyError, TypeError, ValueError):
        return None


def finished(folder: epath.Path, task: str, mark: str) -> dict[str, Any] | None:
    """The summary of a task that was answered before under the same fingerprint; None if that is damaged or another."""
    summary = folder / f"{task}.json"
    if not storage.exists(summary) or not storage.exists(folder / f"{task}.jsonl"):
        return None
    try:
        content = artifacts.read_json(summary)
    except UserError:
        return None  # it can be made again
    whole = isinstance(content, dict) and isinstance(content.get("scores"), dict)
    return content if whole and content.get("fingerprint") == mark else None
