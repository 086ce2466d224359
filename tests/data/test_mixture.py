"""The stream as a pure function of its place."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.mixture import Mixture, open_sources
from qwenvl_jax.runtime.errors import UserError

from .record_samples import with_data

SOURCES = [
    SourceConfig("a", "caption", "", 19.7),
    SourceConfig("b", "vqa", "", 3.6),
    SourceConfig("c", "text", "", 7.8),
]
LENGTHS = [1000, 700, 5000]


def test_weights_and_epochs() -> None:
    mixture = Mixture(SOURCES, LENGTHS, 3)
    drawn = [mixture[n] for n in range(6000)]
    total = sum(source.weight for source in SOURCES)
    counts = collections.Counter(source for source, _ in drawn)
    for number, source in enumerate(SOURCES):
        assert counts[number] / 6000 == pytest.approx(source.weight / total, abs=0.01)
    first = [index for source, index in drawn if source == 0]
    assert sorted(first[:1000]) == sorted(first[1000:2000]) == list(range(1000))  # each record once per epoch
    assert first[:1000] != first[1000:2000] and first[:1000] != sorted(first[:1000])


def test_any_place_alone_and_seeds() -> None:
    mixture = Mixture(SOURCES, LENGTHS, 3)
    stream = [mixture[n] for n in range(200)]
    assert [Mixture(SOURCES, LENGTHS, 3)[n] for n in reversed(range(200))] == stream[::-1]
    assert [Mixture(SOURCES, LENGTHS, 4)[n] for n in range(200)] != stream
    assert mixture[10**11][1] < 5000


def test_adding_a_source_keeps_the_order_of_the_others() -> None:
    def order(sources: list[SourceConfig], lengths: list[int], number: int) -> list[int]:
        mixture = Mixture(sources, lengths, 3)
        return [index for source, index in (mixture[n] for n in range(400)) if source == number][:30]

    more, lengths = [SourceConfig("z", "ocr", "", 5.0), *SOURCES], [50, *LENGTHS]
    assert order(SOURCES, LENGTHS, 1) == order(more, lengths, 2)


def test_sources_must_exist_and_hold_their_task(run_config: Config, record_folders: Path, tmp_path: Path) -> None:
    assert [len(reader) for reader in open_sources(run_config.data)] == [23] * 8
    wrong = (SourceConfig("a", "caption", str(record_folders / "vqa"), 1.0),)
    with pytest.raises(UserError, match=r"is for task 'caption', but .* holds vqa"):
        open_sources(with_data(run_config, mixture=wrong).data)
    missing = (SourceConfig("a", "caption", str(tmp_path / "none"), 1.0),)
    with pytest.raises(UserError, match="does not exist"):
        open_sources(with_data(run_config, mixture=missing).data)
