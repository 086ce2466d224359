"""The packer's promises, on arbitrary streams of samples."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.packing import Item, Packer, Row

SIZES = st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(0, 5))
STREAMS = st.lists(SIZES, max_size=120).map(lambda sizes: [Item(n, *size) for n, size in enumerate(sizes)])
SHAPES = st.tuples(st.integers(1, 5), st.integers(5, 40), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))


def feed(packer: Packer, items: list[Item]) -> list[list[list[Row]]]:
    return [groups for item in items if packer.fits(item) and (groups := packer.add(item)) is not None]


def places(microbatches: list[list[list[Row]]]) -> list[list[list[list[int]]]]:
    return [[[[item.n for item in row.items] for row in rows] for rows in groups] for groups in microbatches]


@given(STREAMS, SHAPES)
@settings(deadline=None)
def test_budgets_tasks_and_completeness(items: list[Item], shape: tuple[int, ...]) -> None:
    rows, length, images, window, count = shape
    packer = Packer(*shape)
    microbatches = feed(packer, items)
    for groups in microbatches:
        assert len(groups) == count and sum(map(len, groups)) >= 1
        for group in groups:
            assert len(group) <= rows
            assert sum(item.images for row in group for item in row.items) <= images
            for row in group:
                assert sum(item.length for item in row.items) <= length
                assert len({item.task for item in row.items}) == 1
    emitted = [item.n for groups in microbatches for group in groups for row in group for item in row.items]
    fitting = [item.n for item in items if item.length <= length and item.images <= images]
    assert sorted(emitted + packer.held()) == fitting  # nothing twice, nothing lost
    state = packer.state()
    assert all(len(open_rows) <= window for open_rows in state["open"].values())
    assert len(state["ready"]) < 2 * rows * count


@given(STREAMS, SHAPES, st.data())
@settings(deadline=None)
def test_a_restored_packer_continues_alike(items: list[Item], shape: tuple[int, ...], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(items)))
    whole, first, second = Packer(*shape), Packer(*shape), Packer(*shape)
    expected = places(feed(whole, items))
    before = places(feed(first, items[:cut]))
    second.restore(json.loads(json.dumps(first.state())), items.__getitem__)
    assert before + places(feed(second, items[cut:])) == expected
    assert second.state() == whole.state()


def test_best_fit_and_window() -> None:
    """By hand: row length 10, two open rows."""
    packer = Packer(rows=1, length=10, images=9, window=2)
    assert packer.add(Item(0, "a", 6, 0)) is None  # opens [6]
    assert packer.add(Item(1, "a", 5, 0)) is None  # opens [5]
    assert packer.add(Item(2, "a", 4, 0))[0][0].items == [Item(0, "a", 6, 0), Item(2, "a", 4, 0)]  # type: ignore[index]
    assert packer.add(Item(3, "a", 7, 0)) is None  # opens [7]
    assert packer.add(Item(4, "a", 3, 0))[0][0].items == [Item(3, "a", 7, 0), Item(4, "a", 3, 0)]  # type: ignore[index]
    assert packer.add(Item(5, "a", 9, 0)) is None
    closed = packer.add(Item(6, "a", 8, 0))  # both rows are too full; the fullest, [9], goes
    assert closed is not None and [item.n for item in closed[0][0].items] == [5]


def test_image_rich_rows_are_held_back_and_come_first_later() -> None:
    packer = Packer(rows=2, length=10, images=4, window=1)
    assert packer.add(Item(0, "rich", 10, 3)) is None
    assert packer.add(Item(1, "rich", 10, 3)) is None  # 3 + 3 images exceed the budget of 4
    first = packer.add(Item(2, "text", 10, 0))
    assert first is not None and places([first]) == [[[[0], [2]]]]
    second = packer.add(Item(3, "text", 10, 0))
    assert second is not None and places([second]) == [[[[1], [3]]]]


def test_rows_rich_in_images_go_to_different_groups() -> None:
    packer = Packer(rows=2, length=10, images=4, window=1, groups=2)
    for n, (task, images) in enumerate([("rich", 4), ("rich", 3), ("text", 0)]):
        assert packer.add(Item(n, task, 10, images)) is None
    groups = packer.add(Item(3, "poor", 10, 1))
    assert groups is not None and places([groups]) == [[[[0], [2]], [[1], [3]]]]


def test_fill_of_a_realistic_stream() -> None:
    """Stage 2 in small: 258 tokens per image and short texts fill rows of 2,048 by over 90 %."""
    packer = Packer(rows=8, length=2048, images=48, window=16)
    lengths = [258 + (37 * n) % 61 if n % 5 else 40 + (97 * n) % 600 for n in range(4000)]
    items = [Item(n, "image" if n % 5 else "text", size, 1 if n % 5 else 0) for n, size in enumerate(lengths)]
    microbatches = feed(packer, items)
    tokens = sum(row.length for groups in microbatches for rows in groups for row in rows)
    assert tokens / (len(microbatches) * 8 * 2048) > 0.9


def test_groups_lose_little_of_a_realistic_stream() -> None:
    """Rows of six images and rows of none, four in five of them with images: groups of 16 rows fill up alike."""
    fills = []
    for groups in (1, 8):
        packer = Packer(rows=128 // groups, length=10, images=640 // groups, window=1, groups=groups)
        items = [Item(n, "image" if n % 5 else "text", 10, 6 if n % 5 else 0) for n in range(4000)]
        microbatches = feed(packer, items)
        fills.append(sum(row.images for part in microbatches for rows in part for row in rows) / len(microbatches))
    assert fills[1] > 0.98 * fills[0]
