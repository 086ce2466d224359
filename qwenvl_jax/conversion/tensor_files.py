"""Writes and reads safetensors shards, one tensor at a time.

The format is eight bytes of header length (little endian), a JSON header `{name: {dtype, shape, data_offsets}}`, and
the bytes of the tensors. We do not use the library here because it needs all tensors of a shard in memory; the tests
read our files with it.
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
from qwenvl_jax.runtime.retries import retried

DTYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16))}
_BY_CODE = dict(DTYPES.values()) | {"F16": np.dtype(np.float16)}
INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20  # the limit of the library
_MAX_AXES = 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """Name and shape of a tensor to write."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def plan_shards(entries: Sequence[Entry], dtype: str, max_bytes: int) -> list[list[Entry]]:
    """Splits `entries`, in order, into shards of at most `max_bytes`; a larger tensor gets a separate shard."""
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
      path: the file.
      entries: its tensors; the header is written first.
      dtype: of all tensors.
      arrays: the tensors in the order of `entries`, C-contiguous in `dtype`. Each is written before the next is
        requested.

    Raises:
      ValueError: if an array does not have the announced shape or dtype.
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
                raise ValueError(f"{entry.name} is {array.dtype}{array.shape}, but announced as {dtype}{entry.shape}")
            file.write(payload(array))


def payload(array: np.ndarray) -> memoryview | bytes:
    """The bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Location of a tensor: bytes `start` to `end` of `file`."""

    file: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: epath.Path) -> dict[str, Stored]:
    """Locates the tensors of one shard by name.

    Raises:
      UserError: if the file is not safetensors, or shorter or longer than its header says.
      FileNotFoundError: if there is no such file.
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
            raise ValueError("its header is not a JSON object")
    except (ValueError, struct.error, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}); copy it again") from None
    header.pop("__metadata__", None)
    begin = 8 + length
    tensors = {name: _stored(path, name, about, begin, total) for name, about in header.items()}
    end = begin
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if stored.start != end:
            raise UserError(
                f"the header of {path} is damaged ({name} does not begin where another tensor ends); copy it again"
            )
        end = stored.end
    if end != total:
        raise UserError(f"{path} is {total - end} bytes longer than its tensors; copy it again")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object of its pairs; raises ValueError if a name is repeated."""
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name appears twice in its header")
    return names


def _stored(path: epath.Path, name: str, about: Any, begin: int, total: int) -> Stored:
    """Checks one entry of a header. The tensors begin at byte `begin` of the file, whose size is `total`."""
    try:
        start, end = about["data_offsets"]
        shape = tuple(about["shape"])
        code = about["dtype"]
        if not all(type(value) is int and value >= 0 for value in (start, end, *shape)) or not isinstance(code, str):
            raise ValueError("sizes must be whole numbers")
        if len(shape) > _MAX_AXES:
            raise ValueError(f"{len(shape)} axes are too many; {_MAX_AXES} are allowed")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the header of {path} is damaged ({name}: {error}); copy it again") from None
    dtype = _BY_CODE.get(code)
    if dtype is None:
        raise UserError(f"{name} in {path} is stored as {code}; only F32, BF16 and F16 are supported")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{name} in {path} has {end - start} bytes, which does not match its shape {shape}; copy it again"
        )
    if begin + end > total:
        raise UserError(f"{path} ends in the middle of {name}: the file is truncated; copy it again")
    return Stored(path, dtype, shape, begin + start, begin + end)


def read_tensor(stored: Stored) -> np.ndarray:
    """Reads one tensor, in its stored dtype.

    Raises:
      UserError: if the file is shorter than when its header was read.
    """
    size = stored.end - stored.start
    if storage.is_remote(stored.file):
        content = storage.read_bytes(stored.file, stored.start, size)
        if len(content) != size:
            raise UserError(f"{stored.file} is truncated; copy it again")
        return np.frombuffer(content, stored.dtype).reshape(stored.shape)
    array = np.empty(stored.shape, stored.dtype)

    def read() -> int:
        with open(stored.file, "rb") as file:
            file.seek(stored.start)
            return file.readinto(payload(array)) if size else 0

    if retried(read, stored.file) != size:
        raise UserError(f"{stored.file} is truncated; copy it again")
    return array
