"""The packer's promises, on arbitrary streams of samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data import packing
from qwenvl_jax.data.packing import Item, Packer, Row, images_of

# A task, the lengths of the samples of a record, and the images that they share.
SIZES = st.tuples(
    st.sampled_from("abc"), st.lists(st.integers(1, 9), min_size=1, max_size=7).map(tuple), st.integers(0, 4)
)
STREAMS = st.lists(SIZES, max_size=100).map(lambda sizes: [Item(n, *size) for n, size in enumerate(sizes)])
SHAPES = st.tuples(st.integers(1, 5), st.integers(9, 40), st.integers(4, 12), st.integers(1, 6))


def feed(packer: Packer, items: list[Item]) -> list[list[Row]]:
    groups = []
    for item in items:
        packer.add(item)
        while (group := packer.next_group()) is not None:
            groups.append(group)
    return groups


def positions(groups: list[list[Row]]) -> list[list[list[int]]]:
    return [[[item.position for item in row.items] for row in group] for group in groups]


def samples_in(items: Iterable[Item]) -> list[tuple[int, int, int]]:
    """Position, number and length of every sample."""
    return sorted((i.position, i.first + k, length) for i in items for k, length in enumerate(i.lengths))


@given(STREAMS, SHAPES)
@settings(deadline=None)
def test_budgets_tasks_and_completeness(items: list[Item], shape: tuple[int, ...]) -> None:
    rows, length, images, window = shape
    packer = Packer(*shape)
    groups = feed(packer, items)
    for group in groups:
        assert 1 <= len(group) <= rows
        records = {item.position: item.images for row in group for item in row.items}
        assert images_of(group) == sum(records.values()) <= images
        for row in group:
            assert row.length == sum(sum(item.lengths) for item in row.items) <= length
            assert len({item.task for item in row.items}) == 1
            assert len({item.position for item in row.items}) == len(row.items)
    emitted = [item for group in groups for row in group for item in row.items]
    assert samples_in([*emitted, *packer.held()]) == samples_in(items)  # nothing twice, nothing lost
    state = packer.state()
    assert all(len(waiting) <= window for waiting in state["waiting"].values())
    assert len(state["ready"]) < 3 * rows


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=3), min_size=1, max_size=6
    ),
    st.integers(3, 8),
    st.integers(12, 30),
    st.none() | st.integers(0, 4),
)
@settings(deadline=None)
def test_the_choice_is_the_best_of_all(
    options: list[list[tuple[int, int]]], max_count: int, max_size: int, cost: int | None
) -> None:
    def sums(choice: Sequence[int]) -> tuple[int, int]:
        taken = [entry[number - 1] for entry, number in zip(options, choice, strict=True) if number]
        return sum(count for count, _ in taken), sum(size for _, size in taken)

    def rank(choice: Sequence[int]) -> tuple[int, int]:
        count, size = sums(choice)
        return (count, size) if cost is None else (size - cost * count, -count)

    def fits(choice: Sequence[int]) -> bool:
        count, size = sums(choice)
        return choice[0] > 0 and count <= max_count and size <= max_size

    choices = list(filter(fits, itertools.product(*(range(len(entry) + 1) for entry in options))))
    best = packing._best_choice(options, max_count, max_size, cost=cost)
    assert fits(best)
    assert rank(best) == max(map(rank, choices))


def test_the_example_of_the_best_choice() -> None:
    options = [[(1, 5)], [(1, 3)], [(2, 4)]]
    reachable = packing._reachable_sums(options, 3, 9)
    assert reachable == [{1: 1 << 5}, {1: 1 << 5, 2: 1 << 8}, {1: 1 << 5, 2: 1 << 8, 3: 1 << 9}]
    assert packing._trace_back(options, reachable, (3, 9)) == [1, 0, 1]
    assert packing._best_choice(options, 3, 9, cost=0) == [1, 0, 1]
    assert packing._best_choice(options, 3, 9, cost=2) == [1, 1, 0]


@given(STREAMS, SHAPES, st.data())
@settings(deadline=None)
def test_a_restored_packer_continues_alike(items: list[Item], shape: tuple[int, ...], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(items)))
    whole, first, second = Packer(*shape), Packer(*shape), Packer(*shape)
    expected = feed(whole, items)
    before = feed(first, items[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert before + feed(second, items[cut:]) == expected
    assert second.state() == whole.state()


@given(STREAMS, SHAPES)
@settings(deadline=None)
def test_rows_that_share_images_are_clustered(items: list[Item], shape: tuple[int, ...]) -> None:
    """Against the definition: rows are together if a chain of rows with common records joins them."""
    packer = Packer(*shape)
    feed(packer, items)
    rows = packer._ready
    together = np.eye(len(rows), dtype=bool)
    for a, b in itertools.combinations(range(len(rows)), 2):
        records = [{item.position for item in rows[k].items if item.images} for k in (a, b)]
        together[a, b] = together[b, a] = bool(records[0] & records[1])
    for _ in rows:
        together |= together @ together
    expected = sorted({tuple(np.flatnonzero(line).tolist()) for line in together})
    number_of = {id(row): number for number, row in enumerate(rows)}
    assert [tuple(number_of[id(row)] for row in cluster) for cluster in packing._clusters(rows)] == expected


def test_a_row_by_hand() -> None:
    """Row length 10, a choice of three: the oldest with those that fill its row."""
    packer = Packer(rows=1, length=10, images=9, window=3)
    groups = feed(packer, [Item(n, "a", (length,), 0) for n, length in enumerate((5, 4, 3, 2, 9, 9, 1, 8, 1, 1, 1))])
    # 5 + 3 + 2 fill the first row. Then 4 waits with 9, 9 and 1, of which only 1 fits, then 9 with 9, 8 and 1.
    assert positions(groups) == [[[0, 2, 3]], [[1, 6]]]
    assert packer.state() == {
        "waiting": {"a": [[7, 0, 0, 8], [10, 0, 0, 1]]},
        "ready": [["a", [[4, 0, 0, 9], [8, 0, 0, 1]]], ["a", [[5, 0, 0, 9], [9, 0, 0, 1]]]],
    }


def test_samples_of_one_record_share_their_image() -> None:
    """Twelve questions about one picture fill three rows. Two of these and another row need two images."""
    packer = Packer(rows=3, length=40, images=2, window=1)
    many = Item(0, "a", (10,) * 12, 1)
    first = feed(packer, [many, *(Item(n, "a", (40,), 1) for n in range(1, 12))])[0]
    assert [(item.position, item.first, len(item.lengths)) for row in first for item in row.items] == [
        (0, 0, 4),
        (0, 4, 4),
        (1, 0, 1),
    ]
    assert images_of(first) == 2


def test_a_record_may_have_thousands_of_samples() -> None:
    """All its rows wait together and share its image; each group takes the next of them."""
    packer = Packer(rows=4, length=160, images=16, window=1)
    groups = feed(packer, [Item(position, "grounding", (37,) * 5000, 1) for position in range(2)])
    rows = [row for group in groups for row in group]
    assert len(rows) > 1200 and all(row.length == 148 for row in rows[:1200])
    firsts = [row.items[0].first for row in rows[:1200]]
    assert firsts == list(range(0, 4800, 4))
    assert all(images_of(group) == 1 for group in groups[:300])


def test_the_image_budget_by_hand() -> None:
    """Two rows of six that wait, five images: the oldest with the row that uses up what it leaves."""
    packer = Packer(rows=2, length=10, images=5, window=1)
    items = [Item(n, "a", (10,), images) for n, images in enumerate((2, 4, 1, 3, 0, 0, 1))]
    assert positions(feed(packer, items)) == [[[0], [3]]]


def test_too_many_images_leave_rows_empty() -> None:
    packer = Packer(rows=2, length=10, images=4, window=1)
    groups = feed(packer, [Item(n, "rich", (10,), 3) for n in range(8)])
    assert positions(groups) == [[[n]] for n in range(2)]


def test_fill_of_a_realistic_stream() -> None:
    """The shares of Table 3 in small: 258 tokens per image and texts of varied length."""
    rng = np.random.default_rng(0)
    packer = Packer(rows=8, length=2048, images=34, window=32)
    items = []
    for n, task in enumerate(rng.choice(["caption", "box", "ocr", "text"], 8000, p=[0.3, 0.27, 0.33, 0.1])):
        text = rng.lognormal(5.5, 0.8) if task == "ocr" else rng.lognormal(6.4, 0.8) if task == "text" else 0
        text += rng.gamma(4, {"caption": 8, "box": 14}.get(task, 0))
        length = 10 + 258 * (task != "text") + int(text)
        if length <= 2048:
            items.append(Item(n, str(task), (length,), int(task != "text")))
    groups = feed(packer, items)
    assert sum(row.length for group in groups for row in group) / (len(groups) * 8 * 2048) > 0.98
    assert sum(map(images_of, groups)) / (len(groups) * 34) > 0.96
