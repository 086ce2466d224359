"""Tables whose columns are separated by commas or tabs, as `csv` and pandas write them, row by row.

A value in quotes may have separators, line breaks and doubled quotes. Values are texts and nothing else: "None", "NA"
and "1.0", which pandas would change, stay as they are written. Rows are not trusted: one with too few or too many
values, or with bytes that are not UTF-8, fails alone. A quote that is never closed swallows the rows that follow, up to
`MOST_CHARACTERS`.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from data_pipelines.corpora.rows import BadRow
from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

MOST_CHARACTERS = 64 << 20  # of a value; pictures in base64 are values
_BLOCK = 4 << 20

# The values of a row by the names of their columns.
TableRow = Mapping[str, str]


def table_rows(
    file: epath.Path, separator: str, columns: Sequence[str] = (), *, needed: Sequence[str] = ()
) -> Iterator[tuple[int, TableRow | FailedRow]]:
    """The rows of a table in their order, each with its number from 0.

    Args:
      file: on a disk or gs://, in UTF-8.
      separator: a comma or a tab.
      columns: their names, if the file has no header; the first row is the header otherwise.
      needed: names that the header must have.

    Raises:
      UserError: if a needed column is missing; it names those that are there.
    """
    csv.field_size_limit(MOST_CHARACTERS)
    with storage.open_read(file, _BLOCK) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=separator)
        names = list(columns) or _header(reader, file, needed)
        number = 0
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, FailedRow("wrong form", f"row {number}: {error}")
            else:
                if not values:  # a blank line
                    continue
                yield number, _row(names, values, number)
            number += 1


def _header(reader: Iterator[list[str]], file: epath.Path, needed: Sequence[str]) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error:
        names = []
    missing = [name for name in needed if name not in names]
    if missing:
        there = ", ".join(repr(name)[:40] for name in names[:12]) or "none"
        raise UserError(f"{file} has no column {missing[0]!r}; it has {there}. Is it the file of another corpus?")
    return names


def _row(names: Sequence[str], values: Sequence[str], number: int) -> TableRow | FailedRow:
    if len(values) != len(names):
        return FailedRow("wrong form", f"row {number} has {len(values)} values instead of {len(names)}")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return FailedRow("not UTF-8", f"row {number}")
    return dict(zip(names, values, strict=True))


def filled(row: TableRow, column: str) -> str:
    """The value of a column without white space around it. Raises BadRow if there is none."""
    value = row.get(column, "").strip()
    if not value:
        raise BadRow("missing value", column)
    return value


def picture_in(value: str) -> bytes:
    """The bytes of a picture in base64; no bytes, which counts as a missing picture, if the text is something else."""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""
