"""The packer's promises, on arbitrary streams of samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data import packing
from qwenvl_jax.data.packing import Item, Packer, Row

SIZES = st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(0, 5))
STREAMS = st.lists(SIZES, max_size=120).map(lambda sizes: [Item(n, *size) for n, size in enumerate(sizes)])
SHAPES = st.tuples(st.integers(1, 5), st.integers(5, 40), st.integers(1, 12), st.integers(1, 6))


def feed(packer: Packer, items: list[Item]) -> list[list[Row]]:
    return [group for item in items if packer.fits(item) and (group := packer.add(item)) is not None]


def positions(groups: list[list[Row]]) -> list[list[list[int]]]:
    return [[[item.position for item in row.items] for row in group] for group in groups]


@given(STREAMS, SHAPES)
@settings(deadline=None)
def test_budgets_tasks_and_completeness(items: list[Item], shape: tuple[int, ...]) -> None:
    rows, length, images, window = shape
    packer = Packer(*shape)
    groups = feed(packer, items)
    for group in groups:
        assert 1 <= len(group) <= rows
        assert sum(item.images for row in group for item in row.items) <= images
        for row in group:
            assert row.length == sum(item.length for item in row.items) <= length
            assert len({item.task for item in row.items}) == 1
    emitted = [item.position for group in groups for row in group for item in row.items]
    fitting = [item.position for item in items if item.length <= length and item.images <= images]
    assert sorted(emitted + [item.position for item in packer.held()]) == fitting  # nothing twice, nothing lost
    state = packer.state()
    assert all(len(waiting) <= window for waiting in state["waiting"].values())
    assert len(state["ready"]) < 2 * rows


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=9),
    st.integers(3, 8),
    st.integers(12, 30),
    st.booleans(),
)
def test_the_choice_is_the_best_of_all_subsets(
    sizes: list[tuple[int, int]], max_count: int, max_size: int, prefer_size: bool
) -> None:
    def rank(subset: Sequence[int]) -> tuple[int, int]:
        count = sum(sizes[index][0] for index in subset)
        size = sum(sizes[index][1] for index in subset)
        return (size, count) if prefer_size else (count, size)

    def fits(subset: Sequence[int]) -> bool:
        count = sum(sizes[index][0] for index in subset)
        size = sum(sizes[index][1] for index in subset)
        return count <= max_count and size <= max_size

    others = range(1, len(sizes))
    subsets = [(0, *chosen) for number in range(len(sizes)) for chosen in itertools.combinations(others, number)]
    best = packing._best_subset(sizes, max_count, max_size, prefer_size)
    assert best[0] == 0
    assert best == sorted(set(best))
    assert fits(best)
    assert rank(best) == max(rank(subset) for subset in subsets if fits(subset))


def test_the_example_of_the_best_subset() -> None:
    sizes = [(1, 5), (1, 3), (2, 4)]
    reachable = packing._reachable_sums(sizes, 3, 9)
    assert reachable == [{1: 1 << 5}, {1: 1 << 5, 2: 1 << 8}, {1: 1 << 5, 2: 1 << 8, 3: 1 << 9}]
    assert packing._trace_back(sizes, reachable, (3, 9)) == [0, 2]
    assert packing._best_subset(sizes, 3, 9, prefer_size=True) == [0, 2]


@given(STREAMS, SHAPES, st.data())
@settings(deadline=None)
def test_a_restored_packer_continues_alike(items: list[Item], shape: tuple[int, ...], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(items)))
    whole, first, second = Packer(*shape), Packer(*shape), Packer(*shape)
    expected = positions(feed(whole, items))
    before = positions(feed(first, items[:cut]))
    second.restore(json.loads(json.dumps(first.state())), items.__getitem__)
    assert before + positions(feed(second, items[cut:])) == expected
    assert second.state() == whole.state()


def test_a_row_by_hand() -> None:
    """Row length 10, a choice of three: the oldest with those that fill its row."""
    packer = Packer(rows=1, length=10, images=9, window=3)
    groups = feed(packer, [Item(n, "a", length, 0) for n, length in enumerate((5, 4, 3, 2, 9, 9, 1, 8))])
    # 5 + 3 + 2 fill the first row. Then 4 waits with 9, 9 and 1, of which only 1 fits; then come 9 and 9 alone.
    assert positions(groups) == [[[0, 2, 3]]]
    assert packer.state() == {"waiting": {"a": [4, 5, 7]}, "ready": [[1, 6]]}


def test_the_image_budget_by_hand() -> None:
    """Two rows of four that wait, five images: the oldest with the row that uses up what it leaves."""
    packer = Packer(rows=2, length=10, images=5, window=1)
    items = [Item(n, str(n % 2), 10, images) for n, images in enumerate((2, 4, 1, 3, 0, 0))]
    # Rows leave the window in order 0, 1, 2, 3; row 0 has two images and takes row 3 with three.
    assert positions(feed(packer, items)) == [[[0], [3]]]


def test_too_many_images_leave_rows_empty() -> None:
    packer = Packer(rows=2, length=10, images=4, window=1)
    groups = feed(packer, [Item(n, "rich", 10, 3) for n in range(8)])
    assert positions(groups) == [[[n]] for n in range(4)]


def test_fill_of_a_realistic_stream() -> None:
    """The shares of Table 3 in small: 258 tokens per image and texts of varied length."""
    rng = np.random.default_rng(0)
    packer = Packer(rows=8, length=2048, images=34, window=32)
    items = []
    for n, task in enumerate(rng.choice(["caption", "box", "ocr", "text"], 8000, p=[0.3, 0.27, 0.33, 0.1])):
        text = rng.lognormal(5.5, 0.8) if task == "ocr" else rng.lognormal(6.4, 0.8) if task == "text" else 0
        text += rng.gamma(4, {"caption": 8, "box": 14}.get(task, 0))
        items.append(Item(n, task, 10 + 258 * (task != "text") + int(text), int(task != "text")))
    groups = feed(packer, items)
    assert sum(row.length for group in groups for row in group) / (len(groups) * 8 * 2048) > 0.98
    assert sum(row.images for group in groups for row in group) / (len(groups) * 34) > 0.96
