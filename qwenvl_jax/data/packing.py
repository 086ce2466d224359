"""Packing samples into rows, and rows into groups, under a budget of tokens and one of images.

Only samples of one task share a row (paper 3.2: sequences of 2048 are made from data of the same task). Pure
bookkeeping on lengths: no tokens, no pixels, no randomness, so the same samples in the same order give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Item(NamedTuple):
    """A sample as the packer sees it: `n` its place in the stream, `length` in tokens, `images` it shows."""

    n: int
    task: str
    length: int
    images: int


class Row(NamedTuple):
    """Samples of one task that share a row, in order of arrival."""

    items: tuple[Item, ...]

    @property
    def length(self) -> int:
        return sum(item.length for item in self.items)

    @property
    def images(self) -> int:
        return sum(item.images for item in self.items)


class Packer:
    """Packs the fullest rows and the groups richest in images that a bounded choice of samples allows.

    Samples wait until there are more than `window` of their task. Then the oldest gets a row, filled up by those of
    the others whose lengths come closest to what is left: the exact optimum over all subsets. Rows wait until there
    are twice as many as a group has. Then the oldest goes with those of the others that use up the image budget best,
    again over all subsets. As the oldest always goes, nothing waits for ever.

    If the rows that wait show more images than a group may, the group leaves with fewer rows.

    Args:
      rows: per group.
      length: tokens per row.
      images: per group; also the most that one row may show.
      window: samples of a task among which a row is chosen.
    """

    def __init__(self, rows: int, length: int, images: int, window: int):
        self._rows, self._length, self._images, self._window = rows, length, images, window
        self._waiting: dict[str, list[Item]] = {}
        self._ready: list[Row] = []

    def fits(self, item: Item) -> bool:
        """Whether any row could hold the sample; one that does not fit must be dropped."""
        return 0 < item.length <= self._length and item.images <= self._images

    def add(self, item: Item) -> list[Row] | None:
        """Takes one sample that `fits`; returns a finished group of at most `rows` rows, or None."""
        waiting = self._waiting.setdefault(item.task, [])
        waiting.append(item)
        if len(waiting) <= self._window:
            return None
        chosen = _choose([(item.images, item.length) for item in waiting], self._images, self._length, _by_size)
        self._ready.append(Row(tuple(waiting[k] for k in chosen)))
        self._waiting[item.task] = [other for k, other in enumerate(waiting) if k not in chosen]
        return self._take()

    def _take(self) -> list[Row] | None:
        if len(self._ready) < 2 * self._rows:
            return None
        chosen = _choose([(1, row.images) for row in self._ready], self._rows, self._images, _by_count)
        group = [self._ready[k] for k in chosen]
        self._ready = [row for k, row in enumerate(self._ready) if k not in chosen]
        return group

    def held(self) -> list[Item]:
        """All samples taken and not yet returned."""
        rows = [item for row in self._ready for item in row.items]
        return [*rows, *(item for waiting in self._waiting.values() for item in waiting)]

    def state(self) -> dict[str, Any]:
        """What is held, as JSON values: only places in the stream."""
        return {
            "waiting": {task: [item.n for item in items] for task, items in self._waiting.items()},
            "ready": [[item.n for item in row.items] for row in self._ready],
        }

    def restore(self, state: dict[str, Any], item: Callable[[int], Item]) -> None:
        """Takes back a `state`; `item` looks up the sample at a place in the stream."""
        self._waiting = {task: [item(n) for n in places] for task, places in state["waiting"].items()}
        self._ready = [Row(tuple(item(n) for n in places)) for places in state["ready"]]


def _by_size(reached: tuple[int, int]) -> tuple[int, int]:
    count, size = reached
    return size, count


def _by_count(reached: tuple[int, int]) -> tuple[int, int]:
    return reached


def _choose(
    things: Sequence[tuple[int, int]], counts: int, total: int, best: Callable[[tuple[int, int]], tuple[int, int]]
) -> list[int]:
    """The subset with the first of some things whose sums are best; of equals one of early things.

    Args:
      things: (count, size) of each.
      counts, total: the most that the counts and the sizes of a subset may add up to.
      best: orders pairs of sums; the greatest wins.

    Returns:
      Their indices, in order.
    """
    (count, size), mask = things[0], (1 << total + 1) - 1
    # reached[k][c] has bit s set if a subset of the first k + 1 things adds up to count c and size s.
    reached = [{count: 1 << size}]
    for count, size in things[1:]:
        sums = dict(reached[-1])
        for c, bits in reached[-1].items():
            if c + count <= counts and (moved := bits << size & mask):
                sums[c + count] = sums.get(c + count, 0) | moved
        reached.append(sums)
    count, size = max(((c, bits.bit_length() - 1) for c, bits in reached[-1].items()), key=best)
    chosen = []
    for k in range(len(things) - 1, 0, -1):
        if not reached[k - 1].get(count, 0) >> size & 1:
            chosen.append(k)
            count, size = count - things[k][0], size - things[k][1]
    return [0, *reversed(chosen)]
