"""A file with a table in slices, each of which is read by itself; rows get from parts to buckets and back this way.

The file is written whole. A slice costs three reads at any position, and has a checksum.
"""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
from etils import epath

from data_pipelines.build.part_files import PartDamaged
from qwenvl_jax.runtime import storage

_HEAD = struct.Struct("<8sQ")
_MAGIC = b"QVLSLIC1"
_ENTRY = np.dtype([("first", "<u8"), ("checksum", "<u4")])


def write_slices(path: epath.PathLike, rows: np.ndarray, first: np.ndarray) -> None:
    """Writes a table; slice i has the rows from `first[i]` to `first[i + 1]`.

    Args:
      path: of the file.
      rows: [N] of a structured type.
      first: int [slices + 1], from 0 to N.
    """
    entries = np.zeros(len(first), _ENTRY)
    entries["first"] = first
    payloads = [rows[start:stop].tobytes() for start, stop in itertools.pairwise(first)]
    entries["checksum"][:-1] = [zlib.crc32(payload) for payload in payloads]
    storage.write_bytes(path, b"".join([_HEAD.pack(_MAGIC, len(payloads)), entries.tobytes(), *payloads]))


def read_slice(path: epath.PathLike, number: int, dtype: np.dtype) -> np.ndarray:
    """One slice of a table, [rows] of `dtype`."""
    return read_slices(path, number, number + 1, dtype)[0]


def read_slices(path: epath.PathLike, first: int, stop: int, dtype: np.dtype) -> list[np.ndarray]:
    """Consecutive slices of a table, at least one; each is [rows] of `dtype`. They cost as many reads as one slice."""
    magic, slices = _HEAD.unpack(storage.read_bytes(path, 0, _HEAD.size))
    if magic != _MAGIC:
        raise PartDamaged(f"{path} is not a table")
    start = _HEAD.size + first * _ENTRY.itemsize
    entries = np.frombuffer(storage.read_bytes(path, start, (stop - first + 1) * _ENTRY.itemsize), _ENTRY)
    edges = [int(value) * dtype.itemsize for value in entries["first"]]
    rows_start = _HEAD.size + (slices + 1) * _ENTRY.itemsize
    size = edges[-1] - edges[0]
    payload = storage.read_bytes(path, rows_start + edges[0], size) if size else b""
    tables = []
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        rows = payload[begin - edges[0] : end - edges[0]]
        if len(rows) != end - begin or zlib.crc32(rows) != entries["checksum"][number]:
            raise PartDamaged(f"{path}: the checksum of slice {first + number} is wrong")
        tables.append(np.frombuffer(rows, dtype))
    return tables
