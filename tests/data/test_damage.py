"""Damaged records and pictures: each costs its own sample, wherever and however often it is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.corruption import Tally, check_corruption
from qwenvl_jax.data.loader import Loader, make_loader
from qwenvl_jax.data.mixture_reader import MixtureReader
from qwenvl_jax.data.pipeline import drawn_records
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.readers.source import Source
from qwenvl_jax.data.record_format import encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import TOKEN_ARRAYS, Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data import damage
from tests.data.batches import assert_equal, take
from tests.data.record_samples import make_record, mixture_of, with_data

QUERIES = 4


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 captions, of which six are damaged in ways that raise errors of as many kinds, and two images."""
    folder = tmp_path_factory.mktemp("damaged") / "records"
    good = [make_record("caption", k) for k in range(30)]
    payloads = [encode_record(record) for record in good]
    payloads[3] = damage.with_content(good[3], {"caption": None})
    payloads[4] = damage.with_content(good[4], ["caption"])
    payloads[11] = damage.without_images(good[11])
    payloads[12] = payloads[12][: len(payloads[12]) // 2]
    payloads[20] = encode_record(dataclasses.replace(good[20], images=(good[20].images[0][:90],)))
    payloads[21] = damage.with_content(make_record("dialogue", 0), {"turns": ["hello"]})
    payloads[22] = encode_record(dataclasses.replace(good[22], images=(b"GIF89a" + bytes(40),)))
    damage.write_payloads(folder, payloads, good[0])
    [shard] = folder.glob("*array_record*")
    damage.flip(shard, good[27].images[0][60:200])  # inside of a chunk: the shard's own checksum does not fit any more
    with pytest.raises(UserError, match="hash mismatch"):
        RecordReader(folder)[27]
    return folder


BAD = {3, 4, 11, 12, 20, 21, 22, 27}


@pytest.mark.parametrize(("cut", "workers"), [(1, 0), (2, 1), (5, 0)])
def test_the_stream_is_the_same_wherever_it_was_stopped_between_damaged_records(
    run_config: Config, tokenizer: Tokenizer, damaged: Path, cut: int, workers: int
) -> None:
    """Counted alike too. A flipped byte, null for a text, no image, half a record: each costs its sample."""
    config = mixture_of(run_config, {"bad": damaged}, "caption", decode_workers=workers)
    with make_loader(config, tokenizer) as loader:
        for _ in range(cut):
            next(loader)
        state = json.loads(json.dumps(loader.state()))
        expected = [next(loader) for _ in range(6)]
        counters = loader.counters()
    with make_loader(config, tokenizer) as resumed:
        resumed.restore(state)
        assert_equal([next(resumed) for _ in range(6)], expected)
        assert resumed.counters() == counters
    seen, corrupt = counters["seen"]["bad"], counters["corrupt"]["bad"]
    assert corrupt / (seen + corrupt) == pytest.approx(len(BAD) / 30, abs=0.05)


def test_hosts_that_build_the_same_stream_agree_on_damaged_records(
    run_config: Config, tokenizer: Tokenizer, damaged: Path
) -> None:
    config = mixture_of(
        run_config, {"bad": damaged}, "caption", rows_per_step=16, streams=4, image_groups=4, packing_window=2
    )
    whole = take(config, tokenizer, 3)
    again = take(config, tokenizer, 3, streams=[2, 3])
    for batch, part in zip(whole, again, strict=True):
        np.testing.assert_array_equal(batch.tokens[:, 4:], part.tokens)
        np.testing.assert_array_equal(batch.images[:, batch.images.shape[1] // 2 :], part.images)


@pytest.mark.parametrize("bad", sorted(BAD - {20, 22}))
def test_the_error_names_source_and_record(run_config: Config, tokenizer: Tokenizer, damaged: Path, bad: int) -> None:
    data = mixture_of(run_config, {"bad": damaged}, "caption").data
    reader = MixtureReader(data, [RecordReader(damaged)], tokenizer, QUERIES)
    drawn = reader.tokenize(reader.read(0, bad))
    assert drawn.unreadable
    assert drawn.message.startswith(f"record {bad} of source 'bad'")
    assert reader.tokenize(reader.read(0, 0)).examples[0].record_id == "caption0"


class Failing:
    """The records of a folder, one of which cannot be had."""

    def __init__(self, folder: Path, error: Callable[[], BaseException]):
        self._reader, self._error = RecordReader(folder), error
        self.samples = self._reader.samples

    def __len__(self) -> int:
        return len(self._reader)

    def digest(self) -> str:
        return self._reader.digest()

    def __getitem__(self, index: int) -> Record:
        if index == 7:
            raise self._error()
        return self._reader[index]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda: StorageError("the bucket does not answer"), "the bucket does not answer"),
        (lambda: OSError(5, "Input/output error"), "record 7 of source 'only' could not be read .*Input/output error"),
        (lambda: MemoryError("none left"), "none left"),
    ],
)
def test_what_could_not_be_read_ends_the_run_and_is_never_counted(
    run_config: Config,
    tokenizer: Tokenizer,
    tmp_path: Path,
    error: Callable[[], BaseException],
    expected: str,
) -> None:
    write_records(tmp_path / "records", {"train": [make_record("caption", k) for k in range(60)]}, name="only")
    config = mixture_of(run_config, {"only": tmp_path / "records"}, "caption", max_corrupt_share=1.0)
    reader = MixtureReader(config.data, [cast(Source, Failing(tmp_path / "records", error))], tokenizer, QUERIES)
    with Loader(reader, range(config.data.streams), 2) as loader:
        with pytest.raises((StorageError, MemoryError), match=expected):
            for _ in range(30):
                next(loader)
        with pytest.raises((StorageError, MemoryError), match=expected):
            next(loader)
        assert loader.counters()["corrupt"]["only"] == 0


def test_a_held_sample_that_is_damaged_while_the_run_stands_still_leaves_its_place_empty(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """So do records that came back with another length; everything else stays where it was."""
    records = [make_record("caption", k) for k in range(400)]
    folder = tmp_path / "records"
    damage.write_payloads(folder, [*map(encode_record, records)], records[0])
    config = mixture_of(run_config, {"only": folder}, "caption")
    with make_loader(config, tokenizer) as loader:
        next(loader)
        state = json.loads(json.dumps(loader.state()))
        expected = [next(loader) for _ in range(3)]
        before = loader.counters()
    reader = MixtureReader(config.data, [RecordReader(folder)], tokenizer, QUERIES)
    ready = state["streams"]["0"]["packer"]["ready"]
    held = [position for _, row in ready for position, *_ in row]
    broken, longer = (drawn_records(reader, 0)[position].record_index for position in held[:2])
    payloads = [*map(encode_record, records)]
    payloads[broken] = payloads[broken][:30]
    payloads[longer] = encode_record(dataclasses.replace(records[longer], content={"caption": "a dog " * 9}))
    digest = json.loads((folder / "manifest.json").read_text())["splits"]["train"]["shards"][0]["sha256"]
    damage.write_payloads(folder, payloads, records[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = digest  # as if the disk had done it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with make_loader(config, tokenizer) as resumed:
        resumed.restore(state)
        found = [next(resumed) for _ in range(3)]
        counters = resumed.counters()
    assert counters["corrupt"]["only"] >= before["corrupt"]["only"] + 2
    different = sum(int((a.segment_ids != b.segment_ids).any(-1).sum()) for a, b in zip(found, expected, strict=True))
    assert 1 <= different <= counters["corrupt"]["only"]
    for a, b in zip(found, expected, strict=True):
        same = a.segment_ids == b.segment_ids
        np.testing.assert_array_equal(a.tokens[same], b.tokens[same])
        for name in TOKEN_ARRAYS:
            assert (getattr(a, name)[~same] == (-1 if name == "image_slot" else 0)).all(), name


def test_a_shard_that_cannot_be_opened_is_named_and_costs_its_records(record_folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(record_folders / "text", folder)
    shard = sorted(folder.glob("*array_record*"))[1]
    shard.write_bytes(bytes(shard.stat().st_size))
    reader = RecordReader(folder)
    first, second = (entry["records"] for entry in reader.summary["shards"][:2])
    assert reader[first - 1].task == "text"
    for index in (first, first + second - 1):
        with pytest.raises(UserError, match=r"copy.*damaged.*copy it or write it again"):
            reader[index]


# How much a run bears.


def tally(name: str, records: int, judged: int, corrupt: int) -> Tally:
    return Tally(name, records, judged, corrupt, f"what is wrong in {name}")


def test_a_small_source_that_cannot_be_read_is_noticed_beside_large_ones() -> None:
    large = tally("large", 10**9, 1_000_000, 5000)
    check_corruption([large, tally("small", 10**6, 300, 3)], 0.01, 1.0)
    with pytest.raises(UserError, match=r"20 of 20 samples of source 'small'.*what is wrong in small.*above 0\.01"):
        check_corruption([large, tally("small", 10**6, 20, 20)], 0.01, 1.0)
    with pytest.raises(UserError, match="64 of 64 samples of source 'two'"):
        check_corruption([large, tally("two", 2, 64, 64)], 0.01, 1.0)
    check_corruption([large, tally("two", 2, 64, 63)], 0.01, 1.0)
    check_corruption([tally("all", 2, 64, 64)], 1.0, 1.0)
    with pytest.raises(UserError, match="1 of 1000 samples"):
        check_corruption([tally("large", 10**6, 1000, 1)], 0.0, 1.0)


@given(
    records=st.integers(4, 500),
    bad=st.integers(1, 3),
    streams=st.sampled_from([1, 4, 64]),
    epochs=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=150)
def test_three_bad_records_of_a_small_source_never_end_a_run(
    records: int, bad: int, streams: int, epochs: int, seed: int
) -> None:
    """However often its epochs repeat, and although one stream sees a part of each."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(records) for _ in range(epochs)])[::streams]
    large = tally("large", 10**9, 10**6, 0)
    corrupt = np.cumsum(order < min(bad, records - 1))
    for judged, count in enumerate(corrupt.tolist(), start=1):
        check_corruption([large, tally("small", records, judged, count)], 0.01, 1 / streams)


def test_a_wholly_unreadable_small_source_ends_the_run(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, record_folders: Path
) -> None:
    """One in a hundred samples, so that the share of all would never show it."""
    records = [dataclasses.replace(make_record("caption", k), images=(b"lost",)) for k in range(40)]
    write_records(tmp_path / "lost", {"train": records}, name="lost")
    sources = (
        SourceConfig("good", "caption", str(record_folders / "caption"), 99.0),
        SourceConfig("lost", "caption", str(tmp_path / "lost"), 1.0),
    )
    config = with_data(run_config, mixture=sources, max_corrupt_share=0.05)
    with make_loader(config, tokenizer) as loader, pytest.raises(UserError, match="samples of source 'lost'"):
        for _ in range(200):
            next(loader)


def test_a_source_that_loses_more_than_a_twentieth_gets_a_line(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = dataclasses.replace(make_record("text", 0), content={"text": "dog " * 300})
    folder = tmp_path / "records"
    write_records(folder, {"train": [long, *(make_record("text", k) for k in range(3))]}, name="records")
    with make_loader(mixture_of(run_config, {"long": folder}, "text", long_samples="drop"), tokenizer) as loader:
        for _ in range(8):
            next(loader)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "do not fit" in line]
    assert "samples of source 'long'" in line and "sequence_length 160" in line
