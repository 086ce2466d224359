"""Which record comes next: shares, epochs, streams, schedules."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.mixture import Sampler, check_schedules, open_sources, weights_at
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import with_data

SOURCES = [
    SourceConfig("a", "caption", "", 19.7),
    SourceConfig("b", "vqa", "", 3.6),
    SourceConfig("c", "text", "", 7.8),
]
LENGTHS = [1000, 700, 5000]


def draws(count: int, sources: list[SourceConfig] = SOURCES, **changes: Any) -> list[tuple[int, int]]:
    arguments = {"lengths": LENGTHS, "seed": 3, "stream": 0, "streams": 1, **changes}
    sampler = Sampler(sources, **arguments)
    return [sampler.draw(0) for _ in range(count)]


def test_weights_and_epochs() -> None:
    drawn = draws(6000)
    total = sum(source.weight for source in SOURCES)
    counts = collections.Counter(source for source, _ in drawn)
    for number, source in enumerate(SOURCES):
        assert abs(counts[number] - 6000 * source.weight / total) < 2
    first = [index for source, index in drawn if source == 0]
    assert sorted(first[:1000]) == sorted(first[1000:2000]) == list(range(1000))  # each record once per epoch
    assert first[:1000] != first[1000:2000] and first[:1000] != sorted(first[:1000])


@given(st.integers(2, 7), st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_streams_share_an_epoch(streams: int, seed: int) -> None:
    """Together they read a source's records as often as one stream would, and not all the same source at once."""
    parts = [draws(1200, stream=stream, streams=streams, seed=seed) for stream in range(streams)]
    read = collections.Counter(index for part in parts for source, index in part if source == 0)
    places = [sum(source == 0 for source, _ in part) for part in parts]
    whole = min(places) * streams // LENGTHS[0]
    assert min(read[index] for index in range(LENGTHS[0])) >= whole and max(read.values()) <= whole + 2
    assert len({tuple(source for source, _ in part) for part in parts}) == streams


def test_same_seed_same_draws_and_state() -> None:
    drawn = draws(300)
    assert draws(300) == drawn and draws(300, seed=4) != drawn
    sampler = Sampler(SOURCES, LENGTHS, 3, 0, 1)
    for _ in range(100):
        sampler.draw(0)
    state = json.loads(json.dumps(sampler.state()))
    other = Sampler(SOURCES, LENGTHS, 3, 0, 1)
    other.restore(state)
    assert [other.draw(0) for _ in range(200)] == drawn[100:]
    state["drawn"] = [10**11] * 3
    other.restore(state)
    assert other.draw(0)[1] < 5000  # a late place costs no more than an early one


def test_adding_a_source_keeps_the_order_of_the_others() -> None:
    more, lengths = [SourceConfig("z", "ocr", "", 5.0), *SOURCES], [50, *LENGTHS]
    before = [index for source, index in draws(400) if source == 1][:30]
    assert [index for source, index in draws(400, more, lengths=lengths) if source == 2][:30] == before


def test_weights_follow_their_schedule() -> None:
    sources = [
        SourceConfig("a", "caption", "", 3.0),
        SourceConfig("b", "vqa", "", 0.0, ((10, 0.0), (20, 3.0))),
        SourceConfig("c", "text", "", 6.0, ((20, 0.0),)),
    ]
    check_schedules(sources)
    assert weights_at(sources, 0) == [1 / 3, 0, 2 / 3]
    assert weights_at(sources, 15) == [3 / 6, 1.5 / 6, 1.5 / 6]
    assert weights_at(sources, 20) == weights_at(sources, 999) == [1 / 2, 1 / 2, 0]
    sampler = Sampler(sources, LENGTHS, 3, 0, 1)
    for step, wanted in ((0, [100, 0, 200]), (20, [150, 150, 0])):
        counts = collections.Counter(sampler.draw(step)[0] for _ in range(300))
        assert all(abs(counts[number] - count) <= 1 for number, count in enumerate(wanted))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (((5, 1.0), (5, 2.0)), "must be pairs"),
        (((0, 1.0),), "must be pairs"),
        (((5, -1.0),), "must be pairs"),
        (((5,),), "must be pairs"),
        (((5, 0.0),), "no source of config.data.mixture has any weight at step 5"),
    ],
)
def test_schedules_that_are_none(schedule: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_schedules([SourceConfig("a", "caption", "", 3.0, schedule)])


def test_sources_must_exist_and_hold_their_task(run_config: Config, record_folders: Path, tmp_path: Path) -> None:
    assert [len(reader) for reader in open_sources(run_config.data)] == [23] * 8
    wrong = (SourceConfig("a", "caption", str(record_folders / "vqa"), 1.0),)
    with pytest.raises(UserError, match=r"is for task 'caption', but .* holds vqa"):
        open_sources(with_data(run_config, mixture=wrong).data)
    missing = (SourceConfig("a", "caption", str(tmp_path / "none"), 1.0),)
    with pytest.raises(UserError, match="does not exist"):
        open_sources(with_data(run_config, mixture=missing).data)
