"""How tensors move through memory: a few at a time, on several cores, in order."""

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
# Side of the squares in which a matrix is transposed: both of them stay in the first-level cache.
_TILE = 64
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on several threads: at most one item more than there are workers is under way or waits to be taken."""
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
            for left in waiting:
                left.cancel()


def bits(array: np.ndarray) -> np.ndarray:
    """The array as unsigned integers of its size, which NumPy moves much faster than bfloat16."""
    return array.view(_BITS[array.dtype.itemsize])


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source` for equal shapes, quick also where `source` is a transposed matrix.

    Args:
      target: contiguous.
      source: any strides.
    """
    for shape in ((source.shape[0], -1), (-1, source.shape[-1])) if source.ndim >= 2 and source.size else ():
        try:
            matrix = np.reshape(source, shape, copy=False)
        except ValueError:
            continue  # not a matrix in this form
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
    """The array in C order, itself if it is so already."""
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    copy_into(copy, array)
    return copy
