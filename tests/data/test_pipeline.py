"""The pipeline as a composition of Grain datasets: Grain's tools, and shared pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import grain
import numpy as np
import pytest

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.examples import decode_images
from qwenvl_jax.data.loader import Loader, make_loader
from qwenvl_jax.data.mixture_reader import MixtureReader
from qwenvl_jax.data.pipeline import pipeline
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record, samples_of
from qwenvl_jax.data.tokenizer import Tokenizer
from tests.data.batches import QUERIES, assert_equal, packed_samples, take
from tests.data.record_samples import content, make_record, mixture_of, with_content, with_data


def test_it_is_iterated_without_a_loader(run_config: Config, tokenizer: Tokenizer) -> None:
    batches = []
    for batch in pipeline(run_config):
        batches.append(batch)
        if len(batches) == 3:
            break
    assert_equal(batches, take(run_config, tokenizer, 3))


def test_grain_finds_it_restorable(run_config: Config) -> None:
    """Grain's own check restores the pipeline at every state."""
    dataset = pipeline(with_data(run_config, rows_per_step=8, image_groups=2, streams=2))
    grain.experimental.assert_equal_output_after_checkpoint(grain.experimental.LimitIterDataset(dataset, 4))


def test_grain_can_debug_it(run_config: Config, tokenizer: Tokenizer) -> None:
    options = grain.experimental.DatasetOptions(
        execution_tracking_mode=grain.experimental.ExecutionTrackingMode.STAGE_TIMING
    )
    dataset = grain.experimental.WithOptionsIterDataset(pipeline(run_config), options)
    iterator = dataset.__iter__()
    assert_equal([next(iterator) for _ in range(2)], take(run_config, tokenizer, 2))
    iterator.close()


def pages(count: int, regions: int) -> list[Record]:
    """Pictures with several regions each; a region's name says which picture it belongs to."""
    records = []
    for k in range(count):
        record = make_record("ref_grounding", k)
        phrases = [{"phrase": f"region {k} {n}", "box": [n, 1, 20, 20]} for n in range(1 + (k + regions) % regions)]
        records.append(with_content(record, {"annotations": phrases, "width": 28, "height": 28}))
    return records


def test_samples_of_one_record_show_one_picture(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Within an image group a picture has one slot, whatever rows its samples are in; every sample is taught once."""
    records = pages(40, 9)
    write_records(tmp_path / "pages", {"train": records}, name="pages")
    config = mixture_of(
        run_config, {"pages": tmp_path / "pages"}, "ref_grounding", rows_per_step=8, image_groups=2, images_per_row=1.5
    )
    by_tokens = {}
    mixture = MixtureReader(config.data, [RecordReader(tmp_path / "pages")], tokenizer, QUERIES)
    for index in range(len(records)):
        for example in mixture.tokenize(mixture.read(0, index)).examples:
            by_tokens[example.tokens.tokens_L.tobytes()] = (index, example)
    taught: dict[bytes, int] = {}
    with make_loader(config, tokenizer) as loader:
        while loader.counters()["epochs"]["pages"] < 1:
            batch = next(loader)
            shown: dict[tuple[int, int, int], set[int]] = {}
            for sample in packed_samples(batch):
                index, example = by_tokens[sample.tokens_L.tobytes()]
                taught[sample.tokens_L.tobytes()] = taught.get(sample.tokens_L.tobytes(), 0) + 1
                group = sample.row // config.data.group_rows
                image = sample.slots[0] // QUERIES
                shown.setdefault((sample.microbatch, group, index), set()).add(image)
                pixels = batch.images[sample.microbatch, group * config.data.group_images + image]
                [expected] = decode_images(example.images, 28)
                np.testing.assert_array_equal(pixels, expected)
            assert all(len(images) == 1 for images in shown.values())
        counters = loader.counters()
    samples = sum(taught.values())
    assert counters["images"] + counters["shared"] == counters["seen"]["pages"] == samples
    assert counters["images"] < 0.6 * samples
    assert counters["image_fill"] <= 1


def test_shares_count_samples(run_config: Config, tokenizer: Tokenizer, tmp_path: Path, record_folders: Path) -> None:
    """Also if one source has many samples per record and the other has one."""
    records = pages(30, 12)
    per_record = sum(len(samples_of(record)) for record in records) / 30
    assert per_record > 5
    write_records(tmp_path / "pages", {"train": records}, name="pages")
    sources = (
        SourceConfig("pages", "ref_grounding", str(tmp_path / "pages"), 1.0),
        SourceConfig("captions", "caption", str(record_folders / "caption"), 1.0),
    )
    with make_loader(with_data(run_config, mixture=sources), tokenizer) as loader:
        while loader.counters()["epochs"]["pages"] < 8:
            next(loader)
        seen = loader.counters()["seen"]
    assert seen["pages"] / seen["captions"] == pytest.approx(1, abs=0.1)


def test_a_broken_picture_costs_all_its_samples(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = pages(20, 6)
    records[3] = dataclasses.replace(records[3], images=(b"no picture",))
    write_records(tmp_path / "pages", {"train": records}, name="pages")
    config = mixture_of(run_config, {"pages": tmp_path / "pages"}, "ref_grounding", max_corrupt_share=0.9)
    with make_loader(config, tokenizer) as loader:
        batches = []
        while loader.counters()["epochs"]["pages"] < 3:
            batches.append(next(loader))
        counters = loader.counters()
    broken = len(samples_of(records[3]))
    assert counters["corrupt"]["pages"] % broken == 0 and counters["corrupt"]["pages"] > 0
    assert counters["seen"]["pages"] == sum(len(packed_samples(batch)) for batch in batches)


def test_a_run_stopped_between_samples_of_one_record_continues_alike(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_records(tmp_path / "pages", {"train": pages(15, 20)}, name="pages")
    config = mixture_of(run_config, {"pages": tmp_path / "pages"}, "ref_grounding", packing_window=1)
    with make_loader(config, tokenizer) as loader:
        states, batches = [loader.state()], []
        for _ in range(8):
            batches.append(next(loader))
            states.append(json.loads(json.dumps(loader.state())))
    rows = [row for state in states for _, row in state["streams"]["0"]["packer"]["ready"]]
    assert any(first for row in rows for _, first, *_ in row), "some record is held in part"
    for number, state in enumerate(states):
        with make_loader(config, tokenizer) as loader:
            loader.restore(state)
            assert_equal([next(loader) for _ in batches[number:]], batches[number:])
            assert loader.state() == states[-1]


class Changed(RecordReader):
    """Records of which one sample is longer than it was when the run stopped, as often as `reads` records are read."""

    def __init__(self, folder: Path, sample: int, reads: int):
        super().__init__(folder)
        self._sample = sample
        self._reads = iter(range(reads))

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        phrases = [dict(phrase) for phrase in content(record)["annotations"]]
        if next(self._reads, None) is not None and len(phrases) > 1:
            phrases[self._sample]["phrase"] = "a very much longer region"
        return with_content(record, {**content(record), "annotations": phrases})


@pytest.mark.parametrize("sample", [0, 1, -1])
def test_a_changed_sample_leaves_the_others_of_its_picture_alone(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, sample: int
) -> None:
    """Its tokens, reserved before the run stopped, become padding; the others keep their picture."""
    write_records(tmp_path / "pages", {"train": pages(40, 9)}, name="pages")
    config = mixture_of(
        run_config, {"pages": tmp_path / "pages"}, "ref_grounding", rows_per_step=8, image_groups=2, images_per_row=1.5
    )
    with make_loader(config, tokenizer) as loader:
        next(loader)
        state = loader.state()
        whole = next(loader)
    packer = state["streams"]["0"]["packer"]
    held = [*itertools.chain(*packer["waiting"].values()), *itertools.chain(*(items for _, items in packer["ready"]))]
    records = len({position for position, *_ in held})
    reader = MixtureReader(config.data, [Changed(tmp_path / "pages", sample, records)], tokenizer, QUERIES)
    with Loader(reader, [0], 1) as loader:
        loader.restore(state)
        batch = next(loader)
        counters = loader.counters()
    expected = {(each.microbatch, each.row, each.segment): each for each in packed_samples(whole)}
    kept = packed_samples(batch)
    assert 0 < len(kept) < len(expected)
    before = state["streams"]["0"]["totals"]
    assert counters["seen"]["pages"] - before["seen"][0] == len(kept)
    assert counters["corrupt"]["pages"] == len(expected) - len(kept)
    for each in kept:
        np.testing.assert_array_equal(each.tokens_L, expected[each.microbatch, each.row, each.segment].tokens_L)
        group = each.row // config.data.group_rows * config.data.group_images
        [image] = {group + slot // QUERIES for slot in each.slots}
        assert batch.images[each.microbatch, image].any()
