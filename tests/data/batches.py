"""The first batches of a config, the samples packed in them, and the examples that they must be."""

from __future__ import annotations

import collections
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from qwenvl_jax.config import Config
from qwenvl_jax.data.examples import Example, decode_images, make_example
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.mixture_reader import open_sources
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tokenizer import Tokenizer

QUERIES = 4  # feature slots per image of the `run_config` fixture


def take(config: Config, tokenizer: Tokenizer, count: int, **arguments: Any) -> list[Batch]:
    """The first `count` batches; `arguments` as for `make_loader`."""
    with make_loader(config, tokenizer, **arguments) as loader:
        return [next(loader) for _ in range(count)]


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    """Every array of every batch, its dtype too."""
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        for name, x, y in zip(Batch._fields, left, right, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype


def wait_for_threads(count: int) -> None:
    """Fails if more than `count` threads are left after a minute; Grain's readers end by themselves."""
    deadline = time.monotonic() + 60
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= count


class PackedSample(NamedTuple):
    """One sample cut out of a batch: its microbatch, row and segment id, and [L] of every token array."""

    microbatch: int
    row: int
    segment: int
    tokens_L: np.ndarray
    targets_L: np.ndarray
    loss_mask_L: np.ndarray
    positions_L: np.ndarray
    image_slot_L: np.ndarray
    sources_L: np.ndarray

    @property
    def slots(self) -> list[int]:
        """The feature slots that it reads, in the order of its tokens."""
        return [slot for slot in self.image_slot_L.tolist() if slot >= 0]


def packed_samples(batch: Batch) -> list[PackedSample]:
    """Every sample of a batch, cut out by segment ids. Those of broken images, whose tokens are zeroed, are missing."""
    samples = []
    for microbatch, row in np.ndindex(*batch.segment_ids.shape[:2]):
        segments_L = batch.segment_ids[microbatch, row]
        for segment in np.unique(segments_L[segments_L > 0]).tolist():
            indices = np.flatnonzero(segments_L == segment)
            assert (np.diff(indices) == 1).all(), "a sample is one unbroken run"
            names = ("tokens", "targets", "loss_mask", "positions", "image_slot", "sources")
            cut = (getattr(batch, name)[microbatch, row, indices] for name in names)
            samples.append(PackedSample(microbatch, row, segment, *cut))
    return samples


class KnownExample(NamedTuple):
    """An example made by itself, and its pixels [I, H, W, 3]."""

    example: Example
    images_IHWC: np.ndarray


class KnownExamples:
    """The examples of all records of a config, each made by itself."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self._data = config.data
        self._by_tokens: dict[bytes, list[KnownExample]] = collections.defaultdict(list)
        for number, source in enumerate(open_sources(config.data)):
            for index in range(len(source)):
                example = make_example(source[index], number, tokenizer, QUERIES)
                images_IHWC = decode_images(example.images, config.data.image_size, example.stated_sizes)
                self._by_tokens[example.tokens.tokens_L.tobytes()].append(KnownExample(example, images_IHWC))

    def find(self, sample: PackedSample, batch: Batch) -> KnownExample:
        """The example with the tokens and the pixels of a packed sample; fails if there is no such example."""
        group = sample.row // self._data.group_rows
        images_in_group = sorted({slot // QUERIES for slot in sample.slots})
        assert all(image < self._data.group_images for image in images_in_group)
        indices = [group * self._data.group_images + image for image in images_in_group]
        shown_IHWC = batch.images[sample.microbatch, indices]
        candidates = self._by_tokens[sample.tokens_L.tobytes()]
        matches = [known for known in candidates if np.array_equal(known.images_IHWC, shown_IHWC)]
        assert matches, "no record has these tokens and images"
        return matches[0]


def assert_is_example(sample: PackedSample, example: Example) -> None:
    """Targets, loss mask, positions, image slots and source of a packed sample follow from the example."""
    tokens_L, is_target_L, image_query_L, _ = example.tokens
    np.testing.assert_array_equal(sample.tokens_L, tokens_L)
    assert sample.targets_L.tolist() == [*tokens_L[1:], 0]
    assert sample.loss_mask_L.tolist() == [*is_target_L[1:].astype(float), 0.0]
    assert sample.positions_L.tolist() == list(range(len(tokens_L)))
    assert sample.sources_L.tolist() == [example.source] * len(tokens_L)
    first_slot = min(sample.slots, default=0)
    expected_slots_L = np.where(image_query_L >= 0, image_query_L + first_slot, -1)
    np.testing.assert_array_equal(sample.image_slot_L, expected_slots_L)
