"""Tensors in files: safetensors shards, written and read one tensor at a time.

The format is eight bytes of header length (little endian), a JSON header `{name: {dtype, shape, data_offsets}}`,
then the bytes. Written here rather than through the library because that one needs all tensors of a shard in memory;
the tests read our files with the library.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Sequence

import ml_dtypes
import numpy as np
from etils import epath

from qwenvl_jax.runtime.errors import UserError

DTYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16))}
_BY_CODE = dict(DTYPES.values()) | {"F16": np.dtype(np.float16)}
INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20  # the library's own limit


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
    with path.open("wb") as file:
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
      UserError: if the file is missing, not safetensors, or shorter than its header says.
    """
    try:
        total = path.stat().length
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(total, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, although the release names it; copy the release again") from None
    except (ValueError, struct.error, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}); copy it again") from None
    tensors = {}
    try:
        for name, about in header.items():
            if name == "__metadata__":
                continue
            start, end = about["data_offsets"]
            dtype = _BY_CODE.get(about["dtype"])
            if dtype is None:
                raise UserError(f"{name} in {path} is stored as {about['dtype']}; only F32, BF16 and F16 are read")
            shape = tuple(about["shape"])
            if end - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
                raise UserError(
                    f"{name} in {path} has {end - start} bytes, which is not its shape {shape}; copy it again"
                )
            if 8 + length + end > total:
                raise UserError(f"{path} ends in the middle of {name}: the file is cut short; copy it again")
            tensors[name] = Stored(path, dtype, shape, 8 + length + start, 8 + length + end)
    except (AttributeError, ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the header of {path} is damaged ({error}); copy it again") from None
    return tensors


def read_tensor(stored: Stored) -> np.ndarray:
    """The array of one tensor, in its stored dtype.

    Raises:
      UserError: if the file has become shorter than it was.
    """
    array = np.empty(stored.shape, stored.dtype)
    with stored.file.open("rb") as file:
        file.seek(stored.start)
        if array.size and file.readinto(payload(array)) != array.nbytes:
            raise UserError(f"{stored.file} is cut short; copy it again")
    return array
