"""Processes tensors a few at a time, on several threads, in order; and fast copies of transposed arrays."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")
R = TypeVar("R")

WORKERS = min(8, os.cpu_count() or 1)
# Side of the tiles in which a matrix is transposed: source and target tile fit into the first-level cache.
_TILE = 64
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on WORKERS threads. At most WORKERS + 1 items are being computed or waiting to be taken."""
    waiting: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def bits(array: np.ndarray) -> np.ndarray:
    """A view of the array as unsigned integers, which NumPy copies much faster than bfloat16."""
    return array.view(_BITS[array.dtype.itemsize])


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source` for equal shapes, fast even if `source` is a transposed matrix.

    Args:
      target: contiguous.
      source: any strides.
    """
    for shape in ((source.shape[0], -1), (-1, source.shape[-1])) if source.ndim >= 2 and source.size else ():
        try:
            matrix = np.reshape(source, shape, copy=False)
        except ValueError:
            continue  # these strides are not those of a matrix of this shape
        if matrix.flags.f_contiguous and min(matrix.shape) > 1:
            _transpose(target.reshape(matrix.shape), matrix)
            return
    target[...] = source


def _transpose(target: np.ndarray, source: np.ndarray) -> None:
    rows, columns = source.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            target[i : i + _TILE, j : j + _TILE] = source[i : i + _TILE, j : j + _TILE]


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order; not copied if it already is."""
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    copy_into(copy, array)
    return copy
