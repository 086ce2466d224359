"""The rows of a Parquet file, in batches and with the needed columns only, so that a file of any size can be read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from etils import epath

from data_pipelines.corpora.rows import UNREADABLE
from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError, one_line

# The kinds of values that a column may have to hold. A column without a single value has the type null and fits all.
TEXT = "text"
NUMBER = "number"
IDENTIFIER = "text or whole number"
BYTES = "bytes"  # or the struct {bytes, path} of pictures in `datasets`
TEXTS = "list of texts"
NUMBERS = "list of numbers"
NUMBER_LISTS = "list of lists of numbers"

_ROWS = 1024
_ROWS_WITH_BYTES = 64  # pictures of several MB each must fit into memory
_BUFFER = 1 << 20  # bytes of one read, instead of a whole column of a row group, which may be gigabytes

# Damaged bytes make Arrow raise these.
_DAMAGE = (pa.ArrowException, OSError, ValueError, IndexError, MemoryError)


def table_rows(
    path: epath.Path, columns: Mapping[str, str], required: Sequence[Sequence[str]] = ()
) -> Iterator[dict[str, Any] | FailedRow]:
    """The rows of a file in order, each with those of the columns that the file has.

    A text that is not UTF-8 is the value `UNREADABLE`. If a row group is damaged, its rows from the damage on are one
    `FailedRow`; if the file cannot be opened, the whole file is one.

    Args:
      path: of the file.
      columns: name -> the kind of its values, such as TEXT.
      required: for each tuple of names, the file must have one of these columns.

    Raises:
      UserError: if a required column is missing, or a column holds something else; the message names the columns
        that are there.
    """
    with storage.open_read(path, _BUFFER) as file:
        watched = _Watched(file)
        try:
            table = pyarrow.parquet.ParquetFile(
                watched, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
            )
            schema = table.schema_arrow
            groups = table.num_row_groups
        except _DAMAGE as error:
            yield _damaged(watched, path.name, error)
            return
        kinds = {name: kind for name, kind in columns.items() if name in schema.names}
        _check_columns(path, schema, kinds, required)
        rows = _ROWS_WITH_BYTES if BYTES in kinds.values() else _ROWS
        for group in range(groups):  # one after the other: a batch of several would be lost to damage in one
            try:
                for batch in table.iter_batches(rows, row_groups=[group], columns=list(kinds), use_threads=False):
                    values = [_values(column) for column in batch.columns]
                    for row in zip(*values, strict=True):
                        yield dict(zip(batch.schema.names, row, strict=True))
            except _DAMAGE as error:
                yield _damaged(watched, f"{path.name}, row group {group}", error)


def _damaged(file: _Watched, where: str, error: BaseException) -> FailedRow:
    """The row for a file or row group that cannot be read further."""
    file.raise_failure()  # a failed read is no damage: the file may be whole
    return FailedRow("file damaged", f"{where}: {one_line(error)}")


class _Watched(io.RawIOBase):
    """A file that remembers why a read failed, because Arrow reports damaged contents as OSError as well."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """As of a file; a failure is kept for `raise_failure`."""
        try:
            return self._file.read(size)
        except (OSError, StorageError) as error:
            self._failure = error
            raise

    def raise_failure(self) -> None:
        """Raises the error of the read that failed, if one did."""
        if self._failure is not None:
            raise self._failure


def _check_columns(
    path: epath.Path, schema: pa.Schema, columns: Mapping[str, str], required: Sequence[Sequence[str]]
) -> None:
    there = ", ".join(f"{field.name} ({field.type})"[:60] for field in list(schema)[:30]) or "none"
    for names in required:
        if not set(names) & set(schema.names):
            raise UserError(f"{path} has no column {' or '.join(names)}; its columns are {there}")
    for name, kind in columns.items():
        if schema.names.count(name) > 1:
            raise UserError(f"{path} has several columns {name!r}; its columns are {there}")
        if not _fits(schema.field(name).type, kind):
            raise UserError(f"the column {name!r} of {path} does not hold a {kind}; its columns are {there}")


def _fits(type_: pa.DataType, kind: str) -> bool:
    if pa.types.is_null(type_):
        return True
    if pa.types.is_dictionary(type_):
        return _fits(type_.value_type, kind)
    if kind == TEXT:
        return _is_text(type_)
    if kind == NUMBER:
        return _is_number(type_)
    if kind == IDENTIFIER:
        return _is_text(type_) or pa.types.is_integer(type_)
    if kind == BYTES:
        if pa.types.is_struct(type_):
            index = type_.get_field_index("bytes")
            return index >= 0 and _is_bytes(type_.field(index).type)
        return _is_bytes(type_)
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return False
    return _fits(type_.value_type, {TEXTS: TEXT, NUMBERS: NUMBER, NUMBER_LISTS: NUMBERS}[kind])


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _values(column: pa.Array) -> list[Any]:
    """The values of a column as Python has them; `UNREADABLE` for those that are not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return UNREADABLE
