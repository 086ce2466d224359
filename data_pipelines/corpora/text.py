"""Plain text as JSONL or Parquet: the form in which most corpora of text are published or can be exported.

    FOLDER/part-00000.jsonl       {"text": "..", "id": "..", "language": "en", "license": "CC-BY-SA-4.0"} per line
    FOLDER/part-00001.parquet     with the same columns
    FOLDER/train/..               instead, if there is a folder for the split

Only `text` is required. A row without `language` is judged by the rules, one without `license` has the corpus' licence.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora import parquet
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    BadRow,
    encodable,
    identifier_at,
    json_object,
    label_at,
    lines,
    text_at,
    whole_line,
)
from data_pipelines.pair import FailedRow, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

SUFFIXES = (".jsonl", ".parquet")
_COLUMNS = {
    "text": parquet.TEXT,
    "id": parquet.IDENTIFIER,
    "language": parquet.TEXT,
    "license": parquet.TEXT,
}


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    below = folder / split
    if storage.is_folder(below):
        folder = below
    try:
        sizes = storage.sizes(folder)
    except (FileNotFoundError, NotADirectoryError):
        sizes = {}
    names = sorted(name for name, size in sizes.items() if size is not None and name.endswith(SUFFIXES))
    if not names:
        raise UserError(f"{folder} has no .jsonl and no .parquet file; unpack compressed ones, or correct the folder")
    return [folder / name for name in names]


def _read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    prefix = encodable(os.fspath(file)[len(os.fspath(folder)) :].lstrip("/"))
    table = file.suffix == ".parquet"
    rows = _numbered(parquet.table_rows(file, _COLUMNS, [("text",)])) if table else _json_rows(file)
    for number, row in rows:
        if isinstance(row, FailedRow):
            yield row
            continue
        try:
            yield RawPair(
                id=f"{prefix}:{number}" if row.get("id") is None else f"{prefix}/{identifier_at(row, 'id')}",
                source=corpus.name,
                license=label_at(row, "license") or corpus.license,
                language=label_at(row, "language") or corpus.language,
                texts=(text_at(row, "text"),),
            )
        except BadRow as error:
            yield error.failed


def _numbered(rows: Iterator[dict[str, Any] | FailedRow]) -> Iterator[tuple[int, Mapping[str, Any] | FailedRow]]:
    return zip(itertools.count(), rows)


def _json_rows(file: epath.Path) -> Iterator[tuple[int, Mapping[str, Any] | FailedRow]]:
    for number, line in lines(file):
        try:
            yield number, json_object(whole_line(line))
        except BadRow as error:
            yield number, FailedRow(error.failed.reason, f"line {number}: {error.failed.detail}")


LAYOUT = Layout(_files, _read_file, cut=True)
