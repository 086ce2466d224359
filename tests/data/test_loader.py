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
from qwenvl_jax.data.loader import counts_of, join_states, make_loader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import TOKEN_ARRAYS, Batch, Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError
from tests.data.batches import KnownExamples, assert_equal, assert_is_example, packed_samples, take, wait_for_threads
from tests.data.record_samples import make_record, with_content, with_data


@pytest.fixture(params=[1, 2], ids=lambda groups: f"{groups} image groups")
def grouped_config(run_config: Config, request: pytest.FixtureRequest) -> Config:
    return with_data(run_config, image_groups=request.param)


@pytest.fixture
def batches(grouped_config: Config, tokenizer: Tokenizer) -> list[Batch]:
    """The first four batches of `grouped_config`."""
    return take(grouped_config, tokenizer, 4)


def test_batches_have_the_shapes_of_the_config(grouped_config: Config, batches: list[Batch]) -> None:
    data = grouped_config.data
    shape_ABL = (data.accumulation, data.rows_per_microbatch, data.sequence_length)
    for batch in batches:
        assert all(getattr(batch, name).shape == shape_ABL for name in TOKEN_ARRAYS)
        assert batch.images.shape == (2, 16, 28, 28, 3)
        assert batch.images.dtype == np.uint8


def test_every_packed_sample_is_the_example_of_a_record(
    grouped_config: Config, tokenizer: Tokenizer, batches: list[Batch]
) -> None:
    """Its tokens, targets, mask, positions and pixels are those of an example that was made by itself."""
    known = KnownExamples(grouped_config, tokenizer)
    for batch in batches:
        for sample in packed_samples(batch):
            assert_is_example(sample, known.find(sample, batch).example)


def test_a_row_has_one_task(grouped_config: Config, tokenizer: Tokenizer, batches: list[Batch]) -> None:
    known = KnownExamples(grouped_config, tokenizer)
    for batch in batches:
        tasks = collections.defaultdict(set)
        for sample in packed_samples(batch):
            source = known.find(sample, batch).example.source
            tasks[sample.microbatch, sample.row].add(grouped_config.data.mixture[source].task)
        assert all(len(tasks_of_row) == 1 for tasks_of_row in tasks.values())


def test_every_image_feature_is_read_once_and_without_gaps(grouped_config: Config, batches: list[Batch]) -> None:
    for batch in batches:
        slots_by_group: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for sample in packed_samples(batch):
            group = sample.row // grouped_config.data.group_rows
            slots_by_group[sample.microbatch, group] += sample.slots
        for slots in slots_by_group.values():
            assert sorted(slots) == list(range(len(slots)))


def test_padding_is_empty(batches: list[Batch]) -> None:
    for batch in batches:
        padding = batch.segment_ids == 0
        for name in TOKEN_ARRAYS:
            assert (getattr(batch, name)[padding] == (-1 if name == "image_slot" else 0)).all(), name


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

    def on(count: int, position: dict[str, Any] | None, batches: int) -> tuple[list[Batch], dict[str, Any]]:
        parts, states = [], []
        for host in range(count):
            streams = range(host * 8 // count, (host + 1) * 8 // count)
            with make_loader(config, tokenizer, streams=streams) as loader:
                if position:
                    loader.restore(position)
                parts.append([next(loader) for _ in range(batches)])
                states.append(json.loads(json.dumps(loader.state())))
        return join(parts), join_states(states)

    before, position = on(2, None, 2)
    after, end = on(hosts, position, 3)
    assert_equal(before + after, whole)
    assert end == json.loads(json.dumps(state))
    with make_loader(config, tokenizer) as loader:
        assert loader.counters(end) == loader.counters(counts_of(end)) == counters


def test_the_state_is_small_and_late_positions_are_as_near(run_config: Config, tokenizer: Tokenizer) -> None:
    with make_loader(run_config, tokenizer) as loader:
        next(loader)
        state = loader.state()
        stream_state = state["streams"]["0"]
        assert len(json.dumps(stream_state)) < 4096
        stream_state["next"] = 10**12
        loader.restore(state)
        next(loader)
        assert min(loader.counters()["epochs"].values()) >= 0


def held_samples(stream_state: dict[str, Any]) -> int:
    """The samples of a stream that wait for a row or in a row."""
    packer = stream_state["packer"]
    items = [item for items in packer["waiting"].values() for item in items]
    items += [item for _, row in packer["ready"] for item in row]
    return sum(len(lengths) for _, _, _, *lengths in items)


def test_every_record_once_per_epoch(run_config: Config, tokenizer: Tokenizer) -> None:
    """Over batches and what the packer still holds, records come as often as their epochs say."""
    source = SourceConfig("vqa", "vqa", run_config.data.mixture[1].records, 1.0)
    config = with_data(run_config, mixture=(source,), rows_per_step=2, accumulation=1)
    with make_loader(config, tokenizer) as loader:
        seen: collections.Counter[bytes] = collections.Counter()
        while (stream_state := loader.state()["streams"]["0"])["next"] < 23:
            seen.update(sample.tokens_L.tobytes() for sample in packed_samples(next(loader)))
        assert stream_state["next"] < 46
        assert max(seen.values()) <= 2  # at most two epochs begun
        assert sum(seen.values()) + held_samples(stream_state) == stream_state["next"]
        counters = loader.counters()
        assert counters["seen"] == {"vqa": sum(seen.values())}
        assert counters["epochs"] == {"vqa": round(stream_state["next"] / 23, 4)}


def test_counters(run_config: Config, tokenizer: Tokenizer) -> None:
    with make_loader(run_config, tokenizer) as loader:
        assert loader.counters()["batches"] == 0
        batches = [next(loader) for _ in range(6)]
        counters = loader.counters()
    assert counters["batches"] == 6
    assert counters["tokens"] == sum(int((batch.segment_ids > 0).sum()) for batch in batches)
    assert counters["targets"] == sum(int(batch.loss_mask.sum()) for batch in batches)
    assert counters["token_fill"] == counters["tokens"] / sum(batch.tokens.size for batch in batches)
    assert 0.2 < counters["image_fill"] <= 1 and 0.6 < counters["token_fill"] <= 1
    assert sum(counters["seen"].values()) == sum(len(packed_samples(batch)) for batch in batches)
    assert set(counters["seen"]) == {source.name for source in run_config.data.mixture}


def one_source(config: Config, tmp_path: Path, records: list[Record], **changes: Any) -> Config:
    task = records[0].task
    write_records(tmp_path / "records", {"train": records}, name="records")
    return with_data(config, mixture=(SourceConfig("only", task, str(tmp_path / "records"), 1.0),), **changes)


def test_long_samples_are_dropped_and_counted(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = dataclasses.replace(make_record("text", 0), content={"text": "dog " * 300})
    records = [*(make_record("text", k) for k in range(5)), long]
    config = one_source(run_config, tmp_path, records, long_samples="drop")
    with make_loader(config, tokenizer) as loader:
        next(loader)
        counters = loader.counters()
    assert counters["dropped"]["only"] == pytest.approx(counters["epochs"]["only"], abs=1)  # once per epoch
    assert counters["seen"]["only"] > 0


def test_a_source_that_never_fits_is_refused(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = one_source(run_config, tmp_path, [make_record("dialogue", 0)], sequence_length=20)
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
    assert counters["seen"]["only"] == sum(len(packed_samples(batch)) for batch in batches)
    assert_equal(take(config, tokenizer, len(batches)), batches)


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
    outside = with_content(records[7], {**records[7].content, "box": [0, 0, 29, 9]})
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
    config = one_source(run_config, tmp_path, [with_content(good, {**good.content, "box": [0, 0, 29, 9]})])
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
    wait_for_threads(before)


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
