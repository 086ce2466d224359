"""The values of one row of a corpus, each of the type that its reader needs, or a `BadRow` with the reason.

Rows are not trusted: a key may be missing, a text may be a number, a name of a file may lead out of its folder.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from data_pipelines.pair import FailedRow, RawPair, Row
from qwenvl_jax.data.content_checks import kind_of
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, one_line

MAX_LINE_BYTES = 16 << 20  # of a line of a JSONL or TSV file; a longer one fails, and is not kept in memory
_MAX_NAME = 1024
_BLOCK = 4 << 20

# The value of a text whose bytes are not UTF-8, in the rows of formats that state the type of their columns.
UNREADABLE = object()

T = TypeVar("T")


class BadRow(Exception):
    """A row that cannot be used, with the reason and detail of its `FailedRow`."""

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason, detail)
        self.failed = FailedRow(reason, encodable(one_line(detail)) if detail else "")


def read_each(values: Iterable[T], read: Callable[[T], RawPair]) -> Iterator[Row]:
    """The row of every value, in order; a `FailedRow` if `read` raises BadRow."""
    for value in values:
        try:
            yield read(value)
        except BadRow as error:
            yield error.failed


def object_of(value: object) -> Mapping[str, Any]:
    """The value itself if it is a JSON object. Raises BadRow otherwise."""
    if not isinstance(value, dict):
        raise BadRow("wrong form", f"the row is {kind_of(value)}, not an object")
    return value


def text_at(row: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    """The text at a key. If the key is missing or null, `default`; without a default that is a BadRow."""
    value = row.get(key)
    if value is None:
        if default is None:
            raise BadRow("missing value", key)
        return default
    if value is UNREADABLE:
        raise BadRow("not UTF-8", key)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{key!r} is {kind_of(value)}, not a text")
    return value


def encodable(text: str) -> str:
    """The text as UTF-8 can hold it, for ids and licences: half surrogate pairs are written as escapes.

    Names of files and of members of tars have one for every byte that is not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def label_at(row: Mapping[str, Any], key: str) -> str:
    """The short text at a key, such as a language or a licence; "" if the key is missing or null."""
    return encodable(text_at(row, key, default=""))


def identifier_at(row: Mapping[str, Any], key: str) -> str:
    """The text or whole number at a key, as a text. Raises BadRow if there is none or it is empty."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 128:
        return str(value)
    text = encodable(text_at(row, key))
    if not text:
        raise BadRow("missing value", key)
    return text


def list_at(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    """The list at a key, an empty one if the key is missing or null. Raises BadRow for anything else."""
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise BadRow("wrong type", f"{key!r} is {kind_of(value)}, not a list")
    return value


def number_at(row: Mapping[str, Any], key: str) -> float | None:
    """The finite number at a key; None if there is none, so that NaN and null are the same as no number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def scores_at(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """The finite numbers at those of the keys that have one."""
    numbers = {key: number_at(row, key) for key in keys}
    return {key: number for key, number in numbers.items() if number is not None}


def side_at(row: Mapping[str, Any], key: str) -> int:
    """A width or height in pixels; 0, which means unknown, if there is no positive whole number at the key."""
    number = number_at(row, key)
    return int(number) if number and 0 < number < 1 << 31 and number.is_integer() else 0


def picture_path(folder: epath.Path, name: str) -> str:
    """The path of a picture that a row names, below `folder`. Raises BadRow if the name could lead elsewhere."""
    parts = name.split("/")
    hostile = name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]
    if hostile or not parts[-1] or len(name) > _MAX_NAME or not name.isprintable():
        raise BadRow("refused name", f"the picture is named {name[:100]!r}")
    return os.fspath(folder / name)


def decoded(payload: bytes) -> str:
    """The text of bytes in UTF-8. Raises BadRow if they are not."""
    try:
        return payload.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", error) from None


def json_object(payload: bytes | str) -> Mapping[str, Any]:
    """The JSON object in UTF-8 or a text. Half a surrogate pair, written as an escape, is kept. Raises BadRow."""
    text = payload if isinstance(payload, str) else decoded(payload)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("not JSON", error) from None
    return object_of(value)


def lines(path: epath.Path, *, blank: bool = False) -> Iterator[tuple[int, bytes | None]]:
    """The number, from 1, and the bytes of every line without its end; None instead of bytes if it is too long.

    Blank lines are counted, but left out unless `blank` is set.
    """
    with storage.open_read(path, _BLOCK) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            elif blank or line.strip():
                yield number, line.rstrip(b"\r\n")


def whole_line(line: bytes | None) -> bytes:
    """The line itself. Raises BadRow for None, which means that the line is too long."""
    if line is None:
        raise BadRow("line too long", f"more than {MAX_LINE_BYTES >> 20} MiB")
    return line


def json_lists(path: epath.Path, *keys: str, optional: Sequence[str] = ()) -> list[Sequence[Any]]:
    """The lists at some keys of the one object in a JSON file, which is loaded whole.

    Args:
      path: of the file.
      keys: of lists that the object must have.
      optional: keys of further lists; one that the object does not have is empty.

    Raises:
      UserError: if the file is missing, not JSON, or has no list at one of the keys; it names the keys that are there.
    """
    table = artifacts.read_json(path)
    if not isinstance(table, dict):
        raise UserError(f"{path} holds {kind_of(table)} instead of an object with the lists {', '.join(keys)}")
    for key in keys:
        if not isinstance(table.get(key), list):
            there = ", ".join(repr(name)[:40] for name in list(table)[:12]) or "nothing"
            raise UserError(f"{path} has no list {key!r}; it has {there}. Is it the file of another corpus?")
    further = [table.get(key) for key in optional]
    return [table[key] for key in keys] + [value if isinstance(value, list) else [] for value in further]


def require(folder: epath.Path, names: Sequence[str], source: str) -> list[epath.Path]:
    """The files of a folder with these names.

    Args:
      folder: of the corpus.
      names: of all files that must exist, relative to the folder.
      source: where to get them; it is part of the error message.

    Raises:
      UserError: if one of them is missing.
    """
    for name in names:
        if not storage.exists(folder / name):
            raise UserError(f"{folder / name} does not exist; get it from {source}, or correct the folder")
    return [folder / name for name in names]
