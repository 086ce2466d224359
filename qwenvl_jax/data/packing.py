"""Packing samples into rows, and rows into groups, under one budget of tokens and one of images.

Only samples of one task share a row (paper 3.2: sequences of 2048 are made from data of the same task). The packer
sees lengths only, no tokens and no pixels, and nothing is random: the same samples in the same order give the same
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Sums = tuple[int, int]  # a count and a size


class Item(NamedTuple):
    """Successive samples of one record, as the packer sees them. They show the same images.

    Attributes:
      position: of the record in the stream.
      task: of its record.
      lengths: tokens of each sample.
      images: number of the images that they show.
      first: index of the first of these samples in the record.
    """

    position: int
    task: str
    lengths: tuple[int, ...]
    images: int
    first: int = 0

    def split(self, count: int) -> tuple[Item, Item | None]:
        """The first `count` samples, and the others if there are any."""
        head = self._replace(lengths=self.lengths[:count])
        if count == len(self.lengths):
            return head, None
        return head, self._replace(lengths=self.lengths[count:], first=self.first + count)


class Row(NamedTuple):
    """Items of one task that share a row, in order of arrival; no two of one record."""

    items: tuple[Item, ...]

    @property
    def length(self) -> int:
        """Tokens of all samples in the row."""
        return sum(sum(item.lengths) for item in self.items)


def images_of(rows: Sequence[Row]) -> int:
    """Images that rows of one group show; samples of one record share them."""
    return sum({item.position: item.images for row in rows for item in row.items}.values())


class Packer:
    """Packs rows as full of tokens, and groups as full of images, as a bounded choice of samples allows.

    Records wait until there are more than `window` of their task. Then the oldest one starts a row, together with
    others that leave the fewest tokens unused (an image more counts like `image_cost` unused tokens): the exact optimum
    over all choices of the first k samples of every record, with k of at least one for the oldest.

    Rows wait until there are three times as many as a group has. Then the oldest row starts a group, together with the
    other rows that leave the fewest images of the budget unused. Of rows that share images with one another, the first
    k are chosen; within these choices it is the exact optimum too. The oldest is always taken, so nothing waits for
    ever.

    If the waiting rows have too many images for one group, the group has fewer rows.

    Args:
      rows: per group.
      length: tokens per row.
      images: image budget of a group, and the limit of a row.
      window: number of waiting records of a task above which a row is chosen.
      image_cost: how many tokens fewer a row may have if it shows one image fewer. Every sample must have more tokens
        than this.
    """

    def __init__(self, rows: int, length: int, images: int, window: int, image_cost: int = 0):
        self._rows = rows
        self._length = length
        self._images = images
        self._window = window
        self._image_cost = image_cost
        self._waiting: dict[str, list[Item]] = {}
        self._ready: list[Row] = []

    def add(self, item: Item) -> None:
        """Takes the samples of a record, each of which must fit an empty row."""
        self._waiting.setdefault(item.task, []).append(item)
        while len(self._waiting[item.task]) > self._window:
            self._ready.append(self._next_row(item.task))

    def next_group(self) -> list[Row] | None:
        """A finished group of at most `rows` rows, or None if more samples must be added first."""
        if len(self._ready) < 3 * self._rows:
            return None
        clusters = _clusters(self._ready)
        options = [_growing_cluster(cluster, self._rows) for cluster in clusters]
        chosen = _best_choice(options, self._rows, self._images)
        group = [row for cluster, k in zip(clusters, chosen, strict=True) for row in cluster[:k]]
        taken = {id(row) for row in group}
        self._ready = [row for row in self._ready if id(row) not in taken]
        return group

    def _next_row(self, task: str) -> Row:
        waiting = self._waiting[task]
        options = [_growing(item, self._length) for item in waiting]
        chosen = _best_choice(options, self._images, self._length, cost=self._image_cost)
        taken = []
        left = []
        for item, count in zip(waiting, chosen, strict=True):
            rest: Item | None = item
            if count:
                head, rest = item.split(count)
                taken.append(head)
            if rest:
                left.append(rest)
        self._waiting[task] = left
        return Row(tuple(taken))

    def held(self) -> list[Item]:
        """All samples that were added and not yet returned."""
        in_rows = [item for row in self._ready for item in row.items]
        waiting = [item for items in self._waiting.values() for item in items]
        return [*in_rows, *waiting]

    def state(self) -> dict[str, Any]:
        """The held samples as JSON values: position, first, images and lengths of every item."""

        def values(items: Sequence[Item]) -> list[list[int]]:
            return [[item.position, item.first, item.images, *item.lengths] for item in items]

        waiting = {task: values(items) for task, items in self._waiting.items()}
        return {"waiting": waiting, "ready": [[row.items[0].task, values(row.items)] for row in self._ready]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a `state`."""

        def items(task: str, values: Sequence[Sequence[int]]) -> list[Item]:
            return [Item(position, task, tuple(lengths), images, first) for position, first, images, *lengths in values]

        self._waiting = {task: items(task, values) for task, values in state["waiting"].items()}
        self._ready = [Row(tuple(items(task, values))) for task, values in state["ready"]]


def _growing(item: Item, length: int) -> list[Sums]:
    """The images and tokens of the first 1, 2, ... samples of an item, as many as fit a row of this length."""
    options = []
    tokens = 0
    for sample_length in item.lengths:
        tokens += sample_length
        if tokens > length:
            break
        options.append((item.images, tokens))
    return options


def _growing_cluster(rows: Sequence[Row], count: int) -> list[Sums]:
    """The number of rows and the images of the first 1, 2, ... rows of a cluster, of at most `count` rows."""
    return [(k, images_of(rows[:k])) for k in range(1, min(count, len(rows)) + 1)]


def _clusters(rows: Sequence[Row]) -> list[list[Row]]:
    """Clusters of rows that share images, directly or through other rows, in the order of their oldest rows."""
    older = list(range(len(rows)))  # a row of the same cluster that is as old or older; the oldest one names itself
    first_of: dict[int, int] = {}  # by the position of a record with images, the oldest row that shows it

    def oldest(row: int) -> int:
        while older[row] != row:
            older[row] = older[older[row]]
            row = older[row]
        return row

    for number, row in enumerate(rows):
        for item in row.items:
            if item.images:
                joined = {oldest(number), oldest(first_of.setdefault(item.position, number))}
                older[max(joined)] = min(joined)
    clusters: dict[int, list[Row]] = {}
    for number, row in enumerate(rows):
        clusters.setdefault(oldest(number), []).append(row)
    return list(clusters.values())


def _best_choice(
    options: Sequence[Sequence[Sums]], max_count: int, max_size: int, *, cost: int | None = None
) -> list[int]:
    """The best choice of at most one option per entry, with one of the first entry, and both sums within limits.

    Ties go to earlier entries and to later options. Example: the entries [(1 image, 5 tokens)], [(1, 3)], [(2, 4)]
    with at most 3 images and 9 tokens. The choices with the first entry are [1, 0, 0] with the sums (1, 5), [1, 1, 0]
    with (2, 8) and [1, 0, 1] with (3, 9). The last has most tokens, but the second is better if an image costs two.

    Args:
      options: (count, size) of every option of every entry.
      max_count: limit of the sum of counts.
      max_size: limit of the sum of sizes.
      cost: if it is given, the largest size less `cost` per count is best; else the largest count is, and then the
        largest size.

    Returns:
      The number of the option chosen from every entry, from 1; 0 if none is.
    """
    reachable = _reachable_sums(options, max_count, max_size)
    sums = [(count, bits.bit_length() - 1) for count, bits in reachable[-1].items()]  # the largest size of every count

    def rank(pair: Sums) -> Sums:
        count, size = pair
        return pair if cost is None else (size - cost * count, -count)

    return _trace_back(options, reachable, max(sums, key=rank))


def _reachable_sums(options: Sequence[Sequence[Sums]], max_count: int, max_size: int) -> list[dict[int, int]]:
    """The sums that choices with the first entry can have.

    Returns:
      For every k, the sums of choices from the first k + 1 entries: a map from count to a bitset of sizes, in which bit
      s is set if a choice has this count and the size s. Adding an option to all choices at once is a shift of the
      bitset. In the example of `_best_choice` the last map is {1: 1 << 5, 2: 1 << 8, 3: 1 << 9}.
    """
    mask = (1 << max_size + 1) - 1  # drops sizes above the limit
    start: dict[int, int] = {}
    for count, size in options[0]:
        if count <= max_count and size <= max_size:
            start[count] = start.get(count, 0) | 1 << size
    reachable = [start]
    for entry in options[1:]:
        without_entry = reachable[-1]
        sums = dict(without_entry)
        for entry_count, entry_size in entry:
            if entry_size > max_size:
                continue
            for count, bits in without_entry.items():
                if count + entry_count > max_count:
                    continue
                shifted = bits << entry_size & mask
                if shifted:
                    sums[count + entry_count] = sums.get(count + entry_count, 0) | shifted
        reachable.append(sums)
    return reachable


def _trace_back(options: Sequence[Sequence[Sums]], reachable: Sequence[dict[int, int]], best: Sums) -> list[int]:
    """The choice whose sums are `best`. An entry is used only if the entries before it cannot reach the sums alone."""
    count, size = best
    chosen = [0] * len(options)
    for index in range(len(options) - 1, 0, -1):
        before = reachable[index - 1]
        if before.get(count, 0) >> size & 1:
            continue
        for number in range(len(options[index]), 0, -1):
            option_count, option_size = options[index][number - 1]
            if option_size <= size and before.get(count - option_count, 0) >> (size - option_size) & 1:
                chosen[index] = number
                count -= option_count
                size -= option_size
                break
    chosen[0] = max(number for number, option in enumerate(options[0], start=1) if option == (count, size))
    return chosen
