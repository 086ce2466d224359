"""Packing samples into rows, and rows into groups, under one budget of tokens and one of images.

Only samples of one task share a row (paper 3.2: sequences of 2048 are made from data of the same task). The packer
sees lengths only, no tokens and no pixels, and nothing is random: the same samples in the same order give the same
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Item(NamedTuple):
    """A sample as the packer sees it.

    Attributes:
      position: in the stream.
      task: of its record.
      length: tokens.
      images: number of its images.
    """

    position: int
    task: str
    length: int
    images: int


class Row(NamedTuple):
    """Samples of one task that share a row, in order of arrival."""

    items: tuple[Item, ...]

    @property
    def length(self) -> int:
        """Tokens of all examples in the row."""
        return sum(item.length for item in self.items)

    @property
    def images(self) -> int:
        """Images of all examples in the row."""
        return sum(item.images for item in self.items)


class Packer:
    """Packs rows as full of tokens, and groups as full of images, as a bounded choice of samples allows.

    Samples wait until there are more than `window` of their task. Then the oldest sample starts a row, together with
    the other samples that leave the fewest tokens unused: the exact optimum over all subsets. Rows wait until there are
    twice as many as a group has. Then the oldest row starts a group, together with the other rows that leave the
    fewest images of the budget unused, again over all subsets. The oldest is always taken, so nothing waits for ever.

    If the waiting rows have too many images for one group, the group has fewer rows.

    Args:
      rows: per group.
      length: tokens per row.
      images: image budget of a group, and the limit of a row.
      window: number of waiting samples of a task above which a row is chosen.
    """

    def __init__(self, rows: int, length: int, images: int, window: int):
        self._rows = rows
        self._length = length
        self._images = images
        self._window = window
        self._waiting: dict[str, list[Item]] = {}
        self._ready: list[Row] = []

    def fits(self, item: Item) -> bool:
        """Whether an empty row could hold the sample. A sample that does not fit must be dropped."""
        return 0 < item.length <= self._length and item.images <= self._images

    def add(self, item: Item) -> list[Row] | None:
        """Takes one sample that `fits`; returns a finished group of at most `rows` rows, or None."""
        waiting = self._waiting.setdefault(item.task, [])
        waiting.append(item)
        if len(waiting) <= self._window:
            return None
        sizes = [(other.images, other.length) for other in waiting]
        chosen = _best_subset(sizes, self._images, self._length, prefer_size=True)
        self._ready.append(Row(tuple(waiting[k] for k in chosen)))
        self._waiting[item.task] = [other for k, other in enumerate(waiting) if k not in chosen]
        return self._next_group()

    def _next_group(self) -> list[Row] | None:
        if len(self._ready) < 2 * self._rows:
            return None
        sizes = [(1, row.images) for row in self._ready]
        chosen = _best_subset(sizes, self._rows, self._images, prefer_size=False)
        group = [self._ready[k] for k in chosen]
        self._ready = [row for k, row in enumerate(self._ready) if k not in chosen]
        return group

    def held(self) -> list[Item]:
        """All samples that were added and not yet returned."""
        in_rows = [item for row in self._ready for item in row.items]
        waiting = [item for items in self._waiting.values() for item in items]
        return [*in_rows, *waiting]

    def state(self) -> dict[str, Any]:
        """The held samples as JSON values: their positions in the stream."""
        return {
            "waiting": {task: [item.position for item in items] for task, items in self._waiting.items()},
            "ready": [[item.position for item in row.items] for row in self._ready],
        }

    def restore(self, state: dict[str, Any], item: Callable[[int], Item]) -> None:
        """Continues after a `state`; `item` looks up the sample at a position in the stream."""
        self._waiting = {
            task: [item(position) for position in positions] for task, positions in state["waiting"].items()
        }
        self._ready = [Row(tuple(item(position) for position in positions)) for positions in state["ready"]]


def _best_subset(sizes: Sequence[tuple[int, int]], max_count: int, max_size: int, prefer_size: bool) -> list[int]:
    """The best subset that contains the first item and keeps both sums within their limits.

    Ties go to earlier items. Example: the items (1 image, 5 tokens), (1, 3), (2, 4) with at most 3 images and 9 tokens,
    `prefer_size` set. The subsets with the first item and sums within the limits are [0] with the sums (1, 5), [0, 1]
    with (2, 8) and [0, 2] with (3, 9). [0, 2] has most tokens.

    Args:
      sizes: (count, size) of each item.
      max_count: limit of the sum of counts.
      max_size: limit of the sum of sizes.
      prefer_size: whether the largest sum of sizes is best, and then the largest sum of counts; else the other way.

    Returns:
      The indices of the subset, ascending.
    """
    reachable = _reachable_sums(sizes, max_count, max_size)
    sums = [(count, bits.bit_length() - 1) for count, bits in reachable[-1].items()]  # the largest size of every count
    best = max(sums, key=lambda pair: (pair[1], pair[0])) if prefer_size else max(sums)
    return _trace_back(sizes, reachable, best)


def _reachable_sums(sizes: Sequence[tuple[int, int]], max_count: int, max_size: int) -> list[dict[int, int]]:
    """The sums that subsets with the first item can have.

    Returns:
      For every k, the sums of subsets of the first k + 1 items: a map from count to a bitset of sizes, in which bit s
      is set if a subset has this count and the size s. Adding an item to all subsets at once is a shift of the bitset.
      In the example of `_best_subset` the last map is {1: 1 << 5, 2: 1 << 8, 3: 1 << 9}.
    """
    mask = (1 << max_size + 1) - 1  # drops sizes above the limit
    first_count, first_size = sizes[0]
    reachable = [{first_count: 1 << first_size}]
    for item_count, item_size in sizes[1:]:
        without_item = reachable[-1]
        sums = dict(without_item)
        for count, bits in without_item.items():
            if count + item_count > max_count:
                continue
            shifted = bits << item_size & mask
            if shifted:
                sums[count + item_count] = sums.get(count + item_count, 0) | shifted
        reachable.append(sums)
    return reachable


def _trace_back(
    sizes: Sequence[tuple[int, int]], reachable: Sequence[dict[int, int]], best: tuple[int, int]
) -> list[int]:
    """The items whose sums are `best`. An item is taken only if the items before it cannot reach the sums alone."""
    count, size = best
    indices = []
    for index in range(len(sizes) - 1, 0, -1):
        bits_without_item = reachable[index - 1].get(count, 0)
        if not bits_without_item >> size & 1:
            indices.append(index)
            item_count, item_size = sizes[index]
            count -= item_count
            size -= item_size
    return [0, *reversed(indices)]
