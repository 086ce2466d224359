"""Batches: contents, determinism, restore, slices of processes, and broken data."""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.examples import make_example
from qwenvl_jax.data.loader import join_states, make_loader, tallies
from qwenvl_jax.data.readers.record_folder import RecordReader, write_records
from qwenvl_jax.data.schema import Batch, Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError
from tests.data.batches import assert_equal, take
from tests.data.record_samples import make_record, with_data

QUERIES = 4


def samples(batch: Batch) -> list[tuple[tuple[int, int], dict[str, np.ndarray]]]:
    """Every sample of a batch with its (microbatch, row), cut out by segment ids."""
    found = []
    for a, b in np.ndindex(*batch.segment_ids.shape[:2]):
        segments_L = batch.segment_ids[a, b]
        for segment in range(1, segments_L.max() + 1):
            places = np.flatnonzero(segments_L == segment)
            assert (np.diff(places) == 1).all(), "a sample is one unbroken run"
            cut = {name: getattr(batch, name)[a, b, places] for name in Batch._fields[:6]}
            found.append(((a, b), cut))
    return found


def known_examples(config: Config, tokenizer: Tokenizer) -> dict[bytes, list[Any]]:
    """All examples of the config's records, made one by one, by their tokens."""
    known = collections.defaultdict(list)
    for source in config.data.mixture:
        for record in RecordReader(source.records):
            example = make_example(record, source.name, tokenizer, QUERIES, config.data.image_size)
            known[example.tokens_L.tobytes()].append(example)
    return known


@pytest.mark.parametrize("groups", [1, 2])
def test_batches_hold_exactly_the_examples(run_config: Config, tokenizer: Tokenizer, groups: int) -> None:
    """Each sample of a batch equals `make_example` of some record: tokens, targets, mask, positions and pixels."""
    known = known_examples(run_config, tokenizer)
    config = with_data(run_config, image_groups=groups)
    data = config.data
    for batch in take(config, tokenizer, 4):
        shape = (data.accumulation, data.rows_per_microbatch, data.sequence_length)
        assert all(array.shape == shape for array in batch[:6])
        assert batch.images.shape == (2, 16, 28, 28, 3) and batch.images.dtype == np.uint8
        tasks = collections.defaultdict(set)
        used = collections.defaultdict(list)
        for (a, b), cut in samples(batch):
            tokens_L, slots_L = cut["tokens"], cut["image_slot"]
            group = b // data.group_rows
            own = np.unique(slots_L[slots_L >= 0] // QUERIES)
            assert (own < data.group_images).all()
            images_QHWC = batch.images[a, group * data.group_images + own]
            candidates = known[tokens_L.tobytes()]
            [example, *_] = [e for e in candidates if np.array_equal(e.images_IHWC, images_QHWC)]
            tasks[a, b].add(example.task)
            used[a, group] += slots_L[slots_L >= 0].tolist()
            length = len(tokens_L)
            assert cut["positions"].tolist() == list(range(length))
            assert cut["targets"].tolist() == [*tokens_L[1:], 0]
            assert cut["loss_mask"].tolist() == [*example.is_target_L[1:].astype(float), 0.0]
            first = slots_L[slots_L >= 0].min() if len(images_QHWC) else 0
            np.testing.assert_array_equal(np.where(slots_L >= 0, slots_L - first, -1), example.image_query_L)
        assert all(len(found) == 1 for found in tasks.values()), "a row has one task"
        for slots in used.values():
            assert sorted(slots) == list(range(len(slots))), "every feature is read once, without gaps"
        padding = batch.segment_ids == 0
        assert not batch.tokens[padding].any() and not batch.loss_mask[padding].any()
        assert (batch.image_slot[padding] == -1).all()


def test_same_config_same_batches(run_config: Config, tokenizer: Tokenizer) -> None:
    first = take(run_config, tokenizer, 5)
    assert_equal(first, take(run_config, tokenizer, 5, prefetch=1))
    other = take(with_data(run_config, seed=8), tokenizer, 5)
    assert any(not np.array_equal(x.tokens, y.tokens) for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
@pytest.mark.parametrize("workers", [0, 2])
def test_restoring_is_bitwise(run_config: Config, tokenizer: Tokenizer, cut: int, workers: int) -> None:
    """However images are decoded."""
    with make_loader(run_config, tokenizer) as loader:
        before = [next(loader) for _ in range(cut)]
        state = json.loads(json.dumps(loader.state()))
        after = [next(loader) for _ in range(4)]
        counters = loader.counters()
    with make_loader(with_data(run_config, decode_workers=workers), tokenizer) as restored:
        next(restored)
        restored.restore(state)
        assert restored.state() == state
        assert_equal([next(restored) for _ in range(4)], after)
        assert restored.counters() == counters
        restored.restore(state)  # again, with batches in flight
        assert_equal([next(restored)], after[:1])
    assert_equal(take(run_config, tokenizer, cut), before)


def test_state_of_another_stream_is_refused(run_config: Config, tokenizer: Tokenizer) -> None:
    with make_loader(run_config, tokenizer) as loader:
        state = loader.state()
    with (
        make_loader(with_data(run_config, seed=9), tokenizer) as other,
        pytest.raises(UserError, match="another stream"),
    ):
        other.restore(state)


def join(parts: list[list[Batch]]) -> list[Batch]:
    """Batches of the processes, one after the other, as those of one."""
    return [
        Batch(*(np.concatenate(arrays, axis=1) for arrays in zip(*batches, strict=True)))
        for batches in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_continues_the_same_batches(run_config: Config, tokenizer: Tokenizer, hosts: int) -> None:
    """Stopped on two hosts, continued on any: the global batches stay those of a run on one, and so do the counts."""
    config = with_data(run_config, rows_per_step=16, streams=8, image_groups=8, packing_window=2)
    with make_loader(config, tokenizer) as loader:
        whole = [next(loader) for _ in range(5)]
        state, counters = loader.state(), loader.counters()
    assert whole[0].tokens.shape[:2] == (2, 8)

    def on(count: int, place: dict[str, Any] | None, batches: int) -> tuple[list[Batch], dict[str, Any]]:
        parts, states = [], []
        for host in range(count):
            streams = range(host * 8 // count, (host + 1) * 8 // count)
            with make_loader(config, tokenizer, streams=streams) as loader:
                if place:
                    loader.restore(place)
                parts.append([next(loader) for _ in range(batches)])
                states.append(json.loads(json.dumps(loader.state())))
        return join(parts), join_states(states)

    before, place = on(2, None, 2)
    after, end = on(hosts, place, 3)
    assert_equal(before + after, whole)
    assert end == json.loads(json.dumps(state))
    with make_loader(config, tokenizer) as loader:
        assert loader.counters(end) == loader.counters(tallies(end)) == counters


def test_state_is_small_and_late_places_are_as_near_as_early_ones(run_config: Config, tokenizer: Tokenizer) -> None:
    with make_loader(run_config, tokenizer) as loader:
        next(loader)
        state = loader.state()
        own = state["streams"]["0"]
        assert len(json.dumps(own)) < 4096
        own["sampler"]["drawn"] = [10**9] * 8
        loader.restore(state)
        next(loader)
        assert min(loader.counters()["epochs"].values()) >= 0


def test_every_record_once_per_epoch(run_config: Config, tokenizer: Tokenizer) -> None:
    """Over batches and what the packer still holds, records come as often as their epochs say."""
    source = SourceConfig("vqa", "vqa", run_config.data.mixture[1].records, 1.0)
    config = with_data(run_config, mixture=(source,), rows_per_step=2, accumulation=1)
    with make_loader(config, tokenizer) as loader:
        seen: collections.Counter[bytes] = collections.Counter()
        while (own := loader.state()["streams"]["0"])["next"] < 23:
            seen.update(cut["tokens"].tobytes() for _, cut in samples(next(loader)))
        assert own["next"] < 46
        assert max(seen.values()) <= 2  # at most two epochs begun
        assert sum(seen.values()) + len(own["held"]) == own["next"]
        counters = loader.counters()
        assert counters["seen"] == {"vqa": sum(seen.values())}
        assert counters["epochs"] == {"vqa": round(own["next"] / 23, 4)}


def test_counters(run_config: Config, tokenizer: Tokenizer) -> None:
    with make_loader(run_config, tokenizer) as loader:
        assert loader.counters()["batches"] == 0
        batches = [next(loader) for _ in range(6)]
        counters = loader.counters()
    assert counters["batches"] == 6
    assert counters["tokens"] == sum(int((batch.segment_ids > 0).sum()) for batch in batches)
    assert counters["targets"] == sum(int(batch.loss_mask.sum()) for batch in batches)
    assert counters["token_fill"] == counters["tokens"] / sum(batch.tokens.size for batch in batches)
    assert 0.3 < counters["image_fill"] <= 1 and 0.6 < counters["token_fill"] <= 1
    assert sum(counters["seen"].values()) == sum(len(samples(batch)) for batch in batches)
    assert set(counters["seen"]) == {source.name for source in run_config.data.mixture}


def one_source(config: Config, tmp_path: Path, records: list[Record], **changes: Any) -> Config:
    task = records[0].task
    write_records(tmp_path / "records", {"train": records}, name="records")
    return with_data(config, mixture=(SourceConfig("only", task, str(tmp_path / "records"), 1.0),), **changes)


def test_long_samples_are_dropped_and_counted(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = dataclasses.replace(make_record("text", 0), content={"text": "dog " * 300})
    config = one_source(run_config, tmp_path, [*(make_record("text", k) for k in range(5)), long])
    with make_loader(config, tokenizer) as loader:
        next(loader)
        counters = loader.counters()
    assert counters["dropped"]["only"] == pytest.approx(counters["epochs"]["only"], abs=1)  # once per epoch
    assert counters["seen"]["only"] > 0


def test_a_source_that_never_fits_is_refused(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = one_source(run_config, tmp_path, [make_record("dialogue", 0)], sequence_length=60)
    with make_loader(config, tokenizer) as loader, pytest.raises(UserError, match="no sample of source 'only' fits"):
        next(loader)


def corrupt(record: Record) -> Record:
    return dataclasses.replace(record, images=(record.images[0][:90],))


def test_few_corrupt_images_leave_padding(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = [make_record("caption", k) for k in range(300)]
    config = one_source(run_config, tmp_path, [corrupt(records[0]), *records[1:]])
    with make_loader(config, tokenizer) as loader:
        batches = []
        while not (count := loader.counters()["corrupt"]["only"]):
            batches.append(next(loader))
        counters = loader.counters()
    assert count == 1
    assert counters["seen"]["only"] == sum(len(cuts(batch)) for batch in batches)
    assert_equal(take(config, tokenizer, len(batches)), batches)


def cuts(batch: Batch) -> list[tuple[int, int, int]]:
    """(microbatch, row, segment) of every sample, also where a segment number is missing."""
    return [
        (a, b, int(segment))
        for a, b in np.ndindex(*batch.segment_ids.shape[:2])
        for segment in np.unique(batch.segment_ids[a, b])
        if segment
    ]


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_many_corrupt_images_end_the_run(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, share: float
) -> None:
    records = [make_record("caption", k) for k in range(60)]
    bad = round(60 * share)
    config = one_source(run_config, tmp_path, [*map(corrupt, records[:bad]), *records[bad:]])
    with make_loader(config, tokenizer) as loader:
        with pytest.raises(UserError, match="samples read so far are corrupt, among them this one: record 'caption"):
            for _ in range(20):
                next(loader)
        with pytest.raises(UserError, match="corrupt"):  # and says so again instead of hanging
            next(loader)


def test_records_that_do_not_fit_their_task_are_counted(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    records = [make_record("ref_grounding", k) for k in range(200)]
    outside = dataclasses.replace(records[7], content={**records[7].content, "box": [0, 0, 29, 9]})
    config = one_source(run_config, tmp_path, [*records[:7], outside, *records[8:]])
    with make_loader(config, tokenizer) as loader:
        while not (counters := loader.counters())["corrupt"]["only"]:
            next(loader)
    assert counters["corrupt"] == {"only": 1} and counters["dropped"] == {"only": 0}
    with (
        make_loader(with_data(config, max_corrupt_share=0.0), tokenizer) as loader,
        pytest.raises(UserError, match=r"'ref_grounding7'.*outside its image.*max_corrupt_share above 0"),
    ):
        for _ in range(100):
            next(loader)


def test_a_decoding_process_that_dies_is_replaced(run_config: Config, tokenizer: Tokenizer) -> None:
    expected = take(run_config, tokenizer, 8)
    with make_loader(with_data(run_config, decode_workers=1), tokenizer) as loader:
        batches = [next(loader) for _ in range(3)]
        [worker] = loader.workers()
        os.kill(worker, signal.SIGKILL)
        batches += [next(loader) for _ in range(5)]
    assert_equal(batches, expected)


def test_memory_is_used_again_but_not_under_a_batch_in_use(run_config: Config, tokenizer: Tokenizer) -> None:
    def mapped() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("qwenvl_jax pixels")

    expected = take(run_config, tokenizer, 12)
    before = mapped()
    kept: dict[int, np.ndarray] = {}
    with make_loader(with_data(run_config, decode_workers=1), tokenizer) as loader:
        for number, batch in enumerate(loader):
            np.testing.assert_array_equal(batch.images, expected[number].images)
            if number % 3 == 0:
                kept[number] = batch.images[0, 1:]  # a view alone
            if number == 11:
                break
        del batch
        maps = mapped() - before
    assert maps < 12
    for number, view in kept.items():
        np.testing.assert_array_equal(view, expected[number].images[0, 1:])


def test_workers_leave_nothing_open(run_config: Config, tokenizer: Tokenizer) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    batches = take(with_data(run_config, decode_workers=2), tokenizer, 6)
    assert all(batch.images.any() for batch in batches)  # the pixels live as long as their batch
    del batches
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_box_outside_its_image_ends_the_run(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    good = make_record("ref_grounding", 0)
    config = one_source(
        run_config, tmp_path, [dataclasses.replace(good, content={**good.content, "box": [0, 0, 29, 9]})]
    )
    with (
        make_loader(config, tokenizer) as loader,
        pytest.raises(UserError, match=r"'ref_grounding0'.*outside its image"),
    ):
        next(loader)


def test_a_vocabulary_larger_than_the_model_is_refused(
    run_config: Config, tokenizer: Tokenizer, qwen: Tokenizer
) -> None:
    with pytest.raises(UserError, match=r"151860 ids, but config\.model\.decoder\.vocab_size is 640"):
        make_loader(run_config, qwen)


def test_closing_ends_the_threads(run_config: Config, tokenizer: Tokenizer) -> None:
    before = threading.active_count()
    take(run_config, tokenizer, 2)
    assert threading.active_count() == before


def test_a_loader_left_open_does_not_disturb_the_exit(run_config: Config) -> None:
    """A script that ends, or fails, between two batches ends with its own exit code."""
    values = repr((run_config.data, run_config.model, run_config.tokenizer))
    code = (
        "from qwenvl_jax.config import *\n"
        "from qwenvl_jax.data.loader import join_states, make_loader\n"
        "from qwenvl_jax.data.tokenizer import load_tokenizer\n"
        f"data, model, vocabulary = {values}\n"
        "config = Config(model, vocabulary, data, None, None, None, None, None)\n"
        "loader = make_loader(config, load_tokenizer(vocabulary))\n"
        "next(loader)\n"
        "raise SystemExit(3)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert (done.returncode, done.stderr) == (3, "")
