"""Work that is done in the background before it is needed."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def in_order(
    pool: concurrent.futures.Executor, function: Callable[[Item], Value], items: Iterable[Item], ahead: int
) -> Iterator[Value]:
    """Yields `function` of every item in order; at most `ahead` items are started before they are needed."""
    waiting: collections.deque[concurrent.futures.Future[Value]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
