"""Which record comes next: shares, epochs, streams, schedules."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax import config as schema
from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.mixture import MixtureSelectionMap, check_schedules
from qwenvl_jax.data.mixture_reader import MixtureReader, open_sources
from qwenvl_jax.data.pipeline import drawn_records
from qwenvl_jax.data.readers.source import Source
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import make_record, with_data

SOURCES = [
    SourceConfig("a", "caption", "", 19.7),
    SourceConfig("b", "vqa", "", 3.6),
    SourceConfig("c", "text", "", 7.8),
]
LENGTHS = [1000, 700, 5000]


class Numbered:
    """Records of which only the number matters."""

    def __init__(self, length: int, samples: int = 0):
        self._length = length
        self.samples = samples or length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        return make_record("text", index % 7)


def draws(
    count: int,
    sources: Sequence[SourceConfig] = SOURCES,
    lengths: Sequence[int] = LENGTHS,
    *,
    first: int = 0,
    stream: int = 0,
    streams: int = 1,
    seed: int = 3,
) -> list[tuple[int, int]]:
    """The source and the record of positions of a stream, from `first` on."""
    data = schema.DataConfig(tuple(sources), 28, 160, 8, 1, 4.0, 3, seed, streams, streams)
    readers = [cast(Source, Numbered(length)) for length in lengths]
    dataset = drawn_records(MixtureReader(data, readers, cast(Tokenizer, None), 4), stream)
    drawn = (dataset[position] for position in range(first, first + count))
    return [(each.source, each.record_index) for each in drawn]


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


def test_same_seed_same_draws_at_any_position() -> None:
    drawn = draws(300)
    assert draws(300) == drawn and draws(300, seed=4) != drawn
    assert draws(200, first=100) == drawn[100:]
    late = draws(5, first=10**12)  # costs no more than an early one
    assert late == draws(6, first=10**12 - 1)[1:]


def test_adding_a_source_keeps_the_order_of_the_others() -> None:
    more, lengths = [SourceConfig("z", "ocr", "", 5.0), *SOURCES], [50, *LENGTHS]
    before = [index for source, index in draws(400) if source == 1][:30]
    assert [index for source, index in draws(400, more, lengths) if source == 2][:30] == before


SHARES = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@given(SHARES, st.integers(0, 3), st.integers(1, 5), st.integers(0, 10**10))
@settings(deadline=None, max_examples=30)
def test_shares_hold_at_any_time_and_no_draw_is_left_out(
    weights: list[float], stream: int, streams: int, first: int
) -> None:
    sources = [SourceConfig(str(number), "text", "", weight) for number, weight in enumerate(weights)]
    mixture = MixtureSelectionMap(sources, [1.0] * len(sources), 5, stream, streams)
    shares = np.array(weights) / sum(weights)
    start = np.zeros(len(sources), int)
    if first:
        for position in range(first - 4000, first):  # long enough for most of the sources
            source, count = mixture[max(0, position)]
            start[source] = count + 1
    counted = start.copy()
    for position in range(first, first + 2500):
        source, count = mixture[position]
        assert count == counted[source] or (first and counted[source] == 0)
        counted[source] = count + 1
    if not first or start.all():
        assert np.abs(counted - shares * (first + 2500)).max() < 2 + 1e-9 * first


def test_records_of_several_samples_are_drawn_less_often() -> None:
    sources = [SourceConfig("pages", "ocr", "", 1.0), SourceConfig("regions", "vqa", "", 1.0)]
    mixture = MixtureSelectionMap(sources, [1.0, 4.0], 3, 0, 1)
    drawn = collections.Counter(mixture[position][0] for position in range(1000))
    assert abs(drawn[0] - 800) < 2  # 800 samples of the first and 4 * 200 of the second


@pytest.mark.parametrize("streams", [1, 4])
def test_weights_follow_their_schedule(streams: int) -> None:
    sources = [
        SourceConfig("a", "caption", "", 3.0),
        SourceConfig("b", "vqa", "", 0.0, ((1000, 0.0), (2000, 3.0))),
        SourceConfig("c", "text", "", 6.0, ((2000, 0.0),)),
    ]
    mixture = MixtureSelectionMap(sources, [1.0, 1.0, 1.0], 3, 0, streams)
    drawn = [mixture[position][0] for position in range(3000 // streams)]

    def counts(start: int, stop: int) -> list[int]:
        part = drawn[start // streams : stop // streams]
        return [part.count(number) * streams for number in range(3)]

    # At 0, 1000 and 2000 samples the shares are (1/3, 0, 2/3), (1/2, 0, 1/2) and (1/2, 1/2, 0), linear between these.
    for start, stop, wanted in (
        (0, 1000, (416.7, 0, 583.3)),
        (1000, 2000, (500, 250, 250)),
        (2000, 3000, (500, 500, 0)),
        (1400, 1600, (100, 50, 50)),
    ):
        assert counts(start, stop) == pytest.approx(wanted, abs=2.1 * streams)


def test_the_time_of_a_schedule_is_in_samples() -> None:
    sources = [SourceConfig("a", "vqa", "", 1.0, ((1000, 0.0),)), SourceConfig("b", "text", "", 1.0)]
    mixture = MixtureSelectionMap(sources, [5.0, 1.0], 3, 0, 1)
    drawn = [mixture[position][0] for position in range(2000)]
    last = max(position for position, source in enumerate(drawn) if source == 0)
    samples = sum((5, 1)[source] for source in drawn[: last + 1])
    assert 900 < samples < 1010


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (((5, 1.0), (5, 2.0)), "must be pairs"),
        (((0, 1.0),), "must be pairs"),
        (((5, -1.0),), "must be pairs"),
        (((5,),), "must be pairs"),
        (((5, 0.0),), "no source of config.data.mixture has any weight after 5 samples"),
    ],
)
def test_malformed_schedules_are_refused(schedule: tuple[tuple[float, ...], ...], message: str) -> None:
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
