"""Answers as they arrive, stored in parts, so that an interrupted sweep continues where it stopped.

    <label>.parts/<settings>/<sha256>.json     answers that arrived since the part before
    <label>.shares/<process>.json              the rows of one process of several, once it has all of its share
    <label>.jsonl                              the rows of all questions
    <label>.json                               the summary, which marks the rows as complete

An answer is found by the key of its question, a digest of prompt, pictures and options; `settings` is a digest of the
weights and of everything else that an answer depends on. So an answer is never taken for that of another question or
checkpoint, it does not matter which process gave it, and questions may be added or truths corrected for free. A part is
one small file that is written whole, because object stores cannot append; it is named after its content, so a damaged
one is noticed.
"""

from __future__ import annotations

import hashlib
import json
import time
from types import TracebackType
from typing import Any, NamedTuple

from etils import epath

from qwenvl_jax.runtime import artifacts, log, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

PART_SECONDS = 10.0  # a killed sweep loses at most this much work; on an object store a part is one request


class Answer(NamedTuple):
    """An answer of a model.

    Attributes:
      key: of its question.
      text: with special tokens written out; the most likely option if options were compared.
      tokens: how many were generated.
      likelihoods: mean log-likelihood of each option; empty if the answer was generated.
    """

    key: str
    text: str
    tokens: int
    likelihoods: tuple[float, ...] = ()


class Answers:
    """The answers of one checkpoint to one benchmark by the keys of their questions.

    It is a context manager that writes all new answers when it ends, also after an error or Ctrl-C.

    Args:
      folder: the predictions of one checkpoint.
      label: of the benchmark.
      settings: digest of everything that an answer depends on but its question.

    Attributes:
      known: all answers so far, those of earlier runs and of other processes included.
    """

    def __init__(self, folder: epath.Path, label: str, settings: str) -> None:
        self._parts = folder / f"{label}.parts" / settings
        self.known: dict[str, Answer] = {}
        self._new: list[Answer] = []
        self._written = time.monotonic()
        self._read_finished(folder, label, settings)
        damaged = 0
        for name in storage.names(self._parts) if storage.is_folder(self._parts) else ():
            answers = _read_part(self._parts / name)
            damaged += answers is None
            self.known |= {answer.key: answer for answer in answers or ()}
        if damaged:
            log.line(f"{damaged} damaged files of {self._parts} are ignored; their questions are asked again")

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, StorageError):  # after a StorageError, writing was retried for minutes
            self.write()

    def add(self, answer: Answer) -> None:
        """Adds an answer, and writes a part if the last part is old enough."""
        self.known[answer.key] = answer
        self._new.append(answer)
        if time.monotonic() - self._written >= PART_SECONDS:
            self.write()

    def write(self) -> None:
        """Writes the new answers as a part."""
        if self._new:
            payload = json.dumps(self._new).encode()
            storage.write_bytes(self._parts / f"{_name(payload)}.json", payload)
            self._new = []
        self._written = time.monotonic()

    def _read_finished(self, folder: epath.Path, label: str, settings: str) -> None:
        """The answers within the rows of a finished benchmark, unless these belong to other settings."""
        summary = summary_of(folder, label)
        if summary is None or summary.get("settings") != settings:
            return
        for row in read_rows(folder, label):
            if "raw" in row:
                likelihoods = tuple(row.get("likelihoods", ()))
                self.known[row["key"]] = Answer(row["key"], row["raw"], row["tokens"], likelihoods)


def finished(folder: epath.Path, label: str, fingerprint: str) -> dict[str, Any] | None:
    """The summary of a benchmark that was answered under this fingerprint; None if there is none or it is damaged."""
    summary = summary_of(folder, label)
    return summary if summary is not None and summary.get("fingerprint") == fingerprint else None


def summary_of(folder: epath.Path, label: str) -> dict[str, Any] | None:
    """The summary of a finished benchmark; None if there is none, or it or its rows are damaged."""
    path = folder / f"{label}.json"
    if not storage.exists(path):
        return None
    try:
        content = artifacts.read_json(path)
        whole = isinstance(content, dict) and isinstance(content.get("scores"), dict)
        return content if whole and artifacts.sha256_of(folder / f"{label}.jsonl") == content.get("sha256") else None
    except (FileNotFoundError, UserError):
        return None  # the benchmark is asked again


def unchanged_summary(folder: epath.Path, label: str) -> dict[str, Any] | None:
    """As `summary_of`; says which file is left out if it was changed or damaged."""
    summary = summary_of(folder, label)
    if summary is None and storage.exists(folder / f"{label}.json"):
        file = folder / f"{label}.jsonl"
        log.line(
            log.printable(f"{file} was changed or damaged after it was written and is left out; evaluate it again")
        )
    return summary


def read_rows(folder: epath.Path, label: str) -> list[dict[str, Any]]:
    """The rows of a finished benchmark in the order of its questions.

    Raises:
      UserError: if the file is missing or is not what an evaluation writes.
    """
    path = folder / f"{label}.jsonl"
    try:
        # Only a line feed ends a row, because answers may contain other line separators.
        rows = [json.loads(line) for line in storage.read_bytes(path).decode().split("\n") if line]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the evaluation again") from None
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
        raise UserError(f"{path} is not what an evaluation writes; remove it and run the evaluation again")
    return rows


def finish(folder: epath.Path, label: str, settings: str, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes all rows, then the summary, and removes the parts of these settings and the shares.

    Args:
      folder: the predictions of one checkpoint.
      label: of the benchmark.
      settings: as in `Answers`.
      rows: of all questions in their order.
      summary: JSON values; must contain the fingerprint.
    """
    done = folder / f"{label}.json"
    storage.remove(done)  # it would vouch for rows with another fingerprint
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    artifacts.write_text(folder / f"{label}.jsonl", lines)
    sha256 = artifacts.sha256_of(folder / f"{label}.jsonl")
    artifacts.write_json(done, {**summary, "settings": settings, "sha256": sha256})
    parts = folder / f"{label}.parts"
    storage.remove(parts / settings)
    if storage.is_folder(parts) and not storage.names(parts):
        storage.remove(parts)
    storage.remove(folder / f"{label}.shares")


def write_share(folder: epath.Path, label: str, process: int, share: dict[str, Any]) -> None:
    """Writes what one process of several adds to the rows of a benchmark."""
    artifacts.write_json(folder / f"{label}.shares" / f"{process:05d}.json", share)


def read_share(folder: epath.Path, label: str, process: int) -> dict[str, Any]:
    """What another process has written by `write_share`."""
    return artifacts.read_json(folder / f"{label}.shares" / f"{process:05d}.json")


def _name(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[:32]


def _read_part(path: epath.Path) -> list[Answer] | None:
    """The answers of a part; None if the file is damaged."""
    payload = storage.read_bytes(path)
    if path.name != f"{_name(payload)}.json":
        return None
    try:
        return [
            Answer(str(key), str(text), int(tokens), tuple(likelihoods))
            for key, text, tokens, likelihoods in json.loads(payload)
        ]
    except (ValueError, TypeError):
        return None
