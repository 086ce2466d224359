"""The answers of one command, row by row on disk, so that a killed command continues where it stopped.

inference.json          the settings that all answers of the folder share
answers.unfinished.jsonl   a row per answer as they come
answers.jsonl           one row per input, in the order of the inputs; written at the end
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from etils import epath

from qwenvl_jax.evaluation.inference.inputs import key_of
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.growing_file import GrowingFile

SETTINGS = "inference.json"
ROWS = "answers.jsonl"
UNFINISHED = "answers.unfinished.jsonl"


class AnswerFile:
    """The rows of a folder by the key of their input.

    It is a context manager; what was added is on disk when it ends, also after an error or Ctrl-C.

    Args:
      folder: for the files.
      settings: JSON values on which the answers depend.

    Attributes:
      rows: of earlier commands, too. Rows without an answer are left out, so that these inputs are tried again.

    Raises:
      UserError: if the folder has answers under other settings.
    """

    def __init__(self, folder: epath.Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        _check(folder, settings)
        self.rows: dict[str, dict[str, Any]] = {}
        for name in (ROWS, UNFINISHED):
            self.rows |= _read(folder / name)
        artifacts.write_json(folder / SETTINGS, settings)
        before = "".join(_line(row) for row in _read(folder / UNFINISHED).values())
        self._file = GrowingFile(folder / UNFINISHED, _encoded(before))

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Adds the row of one input."""
        self.rows[_key(row)] = row
        self._file.add(_encoded(_line(row)))

    def finish(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """Writes all rows and returns those of `keys`, which come first, in their order."""
        first = [self.rows[key] for key in keys]
        known = {id(row) for row in first}
        rest = [row for row in self.rows.values() if id(row) not in known]
        artifacts.write_text(self._folder / ROWS, "".join(map(_line, [*first, *rest])))
        self._file.close()
        storage.remove(self._folder / UNFINISHED)
        return first


def _check(folder: epath.Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if the folder's answers were given under other settings."""
    path = folder / SETTINGS
    if not storage.exists(path):
        if storage.exists(folder / ROWS):
            raise UserError(f"{folder} holds an {ROWS} of another origin; name another --output")
        return
    stored = artifacts.read_json(path)
    stored = stored if isinstance(stored, dict) else {}
    for name, value in json.loads(json.dumps(settings)).items():
        if stored.get(name) != value:
            raise UserError(
                f"{folder} holds answers of another {name} ({stored.get(name)!r}, not {value!r}); name another --output"
            )


def _read(path: epath.Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by key. Lines that a kill left half-written and rows without an answer are dropped."""
    if not storage.exists(path):
        return {}
    rows = {}
    for line in storage.read_bytes(path).decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
            if row["answer"] is not None:
                rows[_key(row)] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _key(row: Mapping[str, Any]) -> str:
    return key_of(row["id"], row["images"], row["prompt"])


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
