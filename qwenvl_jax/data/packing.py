"""Packing samples into rows, and rows into microbatches, under a budget of tokens and one of images.

Only samples of one task share a row (paper 3.2: sequences of 2048 are made from data of the same task). Pure
bookkeeping on lengths: no tokens, no pixels, no randomness, so the same samples in the same order give the same rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, NamedTuple


class Item(NamedTuple):
    """A sample as the packer sees it: `n` its place in the stream, `length` in tokens, `images` it shows."""

    n: int
    task: str
    length: int
    images: int


class Row:
    """Samples of one task that share a row, in order of arrival."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.length = 0
        self.images = 0

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.length += item.length
        self.images += item.images


class Packer:
    """Best-fit packing with a bounded number of open rows per task.

    A sample goes to the open row of its task that it fills best. If none can take it, a new row is opened; at
    `window` open rows the fullest one closes first. Closed rows wait, oldest first, until `rows` of them fit the
    image budget of a microbatch together; a row whose images do not fit any more is held back for the next one,
    where it comes first. If 2 * `rows` wait and no full microbatch is possible (a mixture richer in images than the
    budget), a microbatch leaves with fewer rows, so that memory and state stay bounded.

    The microbatch may be cut into groups, each with its own rows and images (`config.data.image_groups`): rows rich
    in images then go to different groups.

    Args:
      rows: per group.
      length: tokens per row.
      images: per group; also the most that one row may show.
      window: open rows per task.
      groups: per microbatch.
    """

    def __init__(self, rows: int, length: int, images: int, window: int, groups: int = 1):
        self._rows, self._length, self._images, self._window = rows, length, images, window
        self._groups = groups
        self._open: dict[str, list[Row]] = {}
        self._ready: list[Row] = []

    def fits(self, item: Item) -> bool:
        """Whether any row could hold the sample; one that does not fit must be dropped."""
        return 0 < item.length <= self._length and item.images <= self._images

    def add(self, item: Item) -> list[list[Row]] | None:
        """Takes one sample that `fits`; returns a finished microbatch, per group at most `rows` rows, or None."""
        rows = self._open.setdefault(item.task, [])
        candidates = [row for row in rows if self._room(row, item)]
        closed: Row | None = None
        if candidates:
            row = max(candidates, key=lambda row: row.length)  # of equals the oldest
        else:
            if len(rows) == self._window:
                closed = max(rows, key=lambda row: row.length)
                rows.remove(closed)
            row = Row()
            rows.append(row)
        row.add(item)
        if closed is None and row.length == self._length:
            rows.remove(row)
            closed = row
        if closed is None:
            return None
        self._ready.append(closed)
        return self._take()

    def _room(self, row: Row, item: Item) -> bool:
        return row.length + item.length <= self._length and row.images + item.images <= self._images

    def _take(self) -> list[list[Row]] | None:
        wanted, budget = self._rows * self._groups, self._images * self._groups
        if len(self._ready) < wanted:
            return None
        crowded = len(self._ready) >= 2 * wanted
        chosen: list[Row] = []
        images = 0
        for row in self._ready:
            if len(chosen) < wanted and images + row.images <= budget:
                chosen.append(row)
                images += row.images
        if len(chosen) < wanted and not crowded:
            return None
        groups = self._spread(chosen)
        if sum(map(len, groups)) < wanted and not crowded:
            return None
        taken = {id(row) for rows in groups for row in rows}
        self._ready = [row for row in self._ready if id(row) not in taken]
        return groups

    def _spread(self, chosen: list[Row]) -> list[list[Row]]:
        """Deals rows out to the groups, those with most images first, each to the group with fewest images so far.

        Rows that their group's budget has no room for are left out. Within a group rows keep their order.
        """
        if self._groups == 1:
            return [chosen]
        groups: list[list[int]] = [[] for _ in range(self._groups)]
        least = [(0, group) for group in range(self._groups)]  # images so far, of the groups that take more rows
        for place in sorted(range(len(chosen)), key=lambda place: -chosen[place].images):
            if not least:
                break
            images, group = least[0]
            images += chosen[place].images
            if images > self._images:
                continue
            groups[group].append(place)
            if len(groups[group]) < self._rows:
                heapq.heapreplace(least, (images, group))
            else:
                heapq.heappop(least)
        return [[chosen[place] for place in sorted(places)] for places in groups]

    def held(self) -> list[int]:
        """Places in the stream of all samples taken and not yet returned."""
        rows = [*self._ready, *(row for rows in self._open.values() for row in rows)]
        return [item.n for row in rows for item in row.items]

    def state(self) -> dict[str, Any]:
        """What is held, as JSON values: only places in the stream."""
        return {
            "open": {task: [[item.n for item in row.items] for row in rows] for task, rows in self._open.items()},
            "ready": [[item.n for item in row.items] for row in self._ready],
        }

    def restore(self, state: dict[str, Any], item: Callable[[int], Item]) -> None:
        """Takes back a `state`; `item` looks up the sample at a place in the stream."""

        def rebuild(places: list[int]) -> Row:
            row = Row()
            for n in places:
                row.add(item(n))
            return row

        self._open = {task: [rebuild(places) for places in rows] for task, rows in state["open"].items()}
        self._ready = [rebuild(places) for places in state["ready"]]
