"""Tensors in files: safetensors shards, written and read one tensor at a time.

The format is eight bytes of header length (little endian), a JSON header `{name: {dtype, shape, data_offsets}}`,
then the bytes. Written here rather than through the library because that one needs all tensors of a shard in memory;
the tests read our files with the library.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

DTYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16))}
_BY_CODE = dict(DTYPES.values()) | {"F16": np.dtype(np.float16)}
INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20  # the library's own limit
_MAX_AXES = 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor to write, and what `manifest.json` says of it."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def plan_shards(entries: Sequence[Entry], dtype: str, max_bytes: int) -> list[list[Entry]]:
    """Cuts `entries`, in order, into shards of at most `max_bytes` (a larger tensor gets a shard of its own)."""
    width = DTYPES[dtype][1].itemsize
    shards: list[list[Entry]] = [[]]
    used = 0
    for entry in entries:
        if shards[-1] and used + entry.size * width > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.size * width
    return shards


def write_shard(path: epath.Path, entries: Sequence[Entry], dtype: str, arrays: Iterable[np.ndarray]) -> None:
    """Writes one shard.

    Args:
      path: of the file.
      entries: what it will hold; the header is written first.
      dtype: of every tensor.
      arrays: the tensors in that order, C-contiguous in that dtype, each written before the next is asked for.
    """
    code, numpy_dtype = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.size * numpy_dtype.itemsize
        header[entry.name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start on a multiple of eight bytes
    with storage.local_output(path) as local, local.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry, array in zip(entries, arrays, strict=True):
            if array.shape != entry.shape or array.dtype != numpy_dtype:
                raise ValueError(f"{entry.name} is {array.dtype}{array.shape}, announced as {dtype}{entry.shape}")
            file.write(payload(array))


def payload(array: np.ndarray) -> memoryview | bytes:
    """The bytes of a C-contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where one tensor lies."""

    file: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: epath.Path) -> dict[str, Stored]:
    """The tensors of one shard.

    Raises:
      UserError: if the file is not safetensors, or shorter or longer than its header says.
      FileNotFoundError: if there is none.
    """
    total = storage.size(path)
    start = storage.read_bytes(path, 0, 64)
    artifacts.refuse_pointer(path, start)
    try:
        (length,) = struct.unpack("<Q", start[:8])
        if length > min(total - 8, _MAX_HEADER_BYTES):
            raise ValueError("its header is longer than the file")
        header = json.loads(storage.read_bytes(path, 8, length).decode(), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
    except (ValueError, struct.error, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}); copy it again") from None
    header.pop("__metadata__", None)
    begin = 8 + length
    tensors = {name: _stored(path, name, about, begin, total) for name, about in header.items()}
    at = begin
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if stored.start != at:
            raise UserError(
                f"the header of {path} is damaged ({name} does not begin where another ends); copy it again"
            )
        at = stored.end
    if at != total:
        raise UserError(f"{path} is {total - at} bytes longer than its tensors; copy it again")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose names comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in its header")
    return found


def _stored(path: epath.Path, name: str, about: Any, begin: int, total: int) -> Stored:
    """One entry of a header; `begin` is where the tensors begin in the file, `total` its size."""
    try:
        start, end = about["data_offsets"]
        shape, code = tuple(about["shape"]), about["dtype"]
        if not all(type(value) is int and value >= 0 for value in (start, end, *shape)) or not isinstance(code, str):
            raise ValueError("sizes must be whole numbers")
        if len(shape) > _MAX_AXES:
            raise ValueError(f"{len(shape)} axes are too many")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the header of {path} is damaged ({name}: {error}); copy it again") from None
    dtype = _BY_CODE.get(code)
    if dtype is None:
        raise UserError(f"{name} in {path} is stored as {code}; only F32, BF16 and F16 are read")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{name} in {path} has {end - start} bytes, which is not its shape {shape}; copy it again")
    if begin + end > total:
        raise UserError(f"{path} ends in the middle of {name}: the file is cut short; copy it again")
    return Stored(path, dtype, shape, begin + start, begin + end)


def read_tensor(stored: Stored) -> np.ndarray:
    """The array of one tensor, in its stored dtype.

    Raises:
      UserError: if the file has become shorter than it was.
    """
    size = stored.end - stored.start
    if storage.is_remote(stored.file):
        found = storage.read_bytes(stored.file, stored.start, size)
        if len(found) != size:
            raise UserError(f"{stored.file} is cut short; copy it again")
        return np.frombuffer(found, stored.dtype).reshape(stored.shape)
    array = np.empty(stored.shape, stored.dtype)

    def read() -> int:
        with open(stored.file, "rb") as file:
            file.seek(stored.start)
            return file.readinto(payload(array)) if size else 0

    if storage.retried(read, stored.file) != size:
        raise UserError(f"{stored.file} is cut short; copy it again")
    return array
