"""Examples -> Batch: the arrays of one batch, filled example by example, while the images are decoded.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels.
"""

from __future__ import annotations

import collections
import concurrent.futures
from typing import NamedTuple

import numpy as np

from qwenvl_jax.config import DataConfig
from qwenvl_jax.data.examples import Example
from qwenvl_jax.data.images.pool import DecodePool, finished
from qwenvl_jax.data.schema import Batch


class PackedExample(NamedTuple):
    """An example at its position in a batch, while its images are decoded.

    Attributes:
      stream: index of the logical stream that it came from.
      example: with encoded images.
      microbatch, row: indices in the batch.
      tokens: its slice of the row.
      images: its slice of the microbatch's images.
      shared: whether an earlier example of the image group brought these images.
      error: what is wrong with its images, "" if nothing is; known once they are decoded.
    """

    stream: int
    example: Example
    microbatch: int
    row: int
    tokens: slice
    images: slice
    shared: bool
    error: concurrent.futures.Future[str]


class BatchBuilder:
    """Fills one batch.

    Args:
      data: the config.
      share: the share of the rows and images of the whole batch that this one has.
      queries: feature slots per image.
      decoders: decode the images.

    Attributes:
      batch: its arrays; whatever is not filled yet is padding.
      packed: the examples that were added.
    """

    def __init__(self, data: DataConfig, share: float, queries: int, decoders: DecodePool):
        self._group_images = data.group_images
        self._queries = queries
        self._decoders = decoders
        rows = round(data.rows_per_microbatch * share)
        shape_ABL = (data.accumulation, rows, data.sequence_length)
        self._images_per_microbatch = round(data.image_budget * share)
        shape_AIHWC = (data.accumulation, self._images_per_microbatch, data.image_size, data.image_size, 3)
        self._buffer = decoders.buffer(shape_AIHWC)
        images_AIHWC = self._buffer.array if self._buffer else np.zeros(shape_AIHWC, np.uint8)
        self._pixels_IHWC = images_AIHWC.reshape(-1, *shape_AIHWC[2:])  # of all microbatches
        self.batch = Batch(
            tokens=np.zeros(shape_ABL, np.int32),
            targets=np.zeros(shape_ABL, np.int32),
            loss_mask=np.zeros(shape_ABL, np.float32),
            segment_ids=np.zeros(shape_ABL, np.int32),
            positions=np.zeros(shape_ABL, np.int32),
            image_slot=np.full(shape_ABL, -1, np.int32),
            sources=np.zeros(shape_ABL, np.int32),
            images=images_AIHWC,
        )
        self.packed: list[PackedExample] = []
        self._examples_in_row: collections.Counter[tuple[int, int]] = collections.Counter()
        self._tokens_in_row: collections.Counter[tuple[int, int]] = collections.Counter()
        self._images_in_group: collections.Counter[tuple[int, int]] = collections.Counter()
        self._brought: dict[tuple[int, int, int], PackedExample] = {}  # by microbatch, group and position

    def add(self, example: Example, stream: int, microbatch: int, group: int, row: int) -> None:
        """Appends an example to a row, its images to the image group of the row, and starts to decode them.

        If another example of the same record has brought these images to the group, they are shared.
        """
        tokens = self._add_tokens(example, microbatch, row)
        key = (microbatch, group, example.position)
        brought = self._brought.get(key) if example.images else None
        if brought is not None:
            images = brought.images
            error = brought.error
        else:
            before = self._images_in_group[microbatch, group]
            self._images_in_group[microbatch, group] += len(example.images)
            first = group * self._group_images + before
            images = slice(first, first + len(example.images))
            error = self._decode(example, microbatch * self._images_per_microbatch + first)
        self._set_slots(example, microbatch, row, tokens, (images.start - group * self._group_images) * self._queries)
        packed = PackedExample(stream, example, microbatch, row, tokens, images, brought is not None, error)
        self.packed.append(packed)
        if example.images:
            self._brought.setdefault(key, packed)

    def _add_tokens(self, example: Example, microbatch: int, row: int) -> slice:
        tokens_L, is_target_L, _, _ = example.tokens
        start = self._tokens_in_row[microbatch, row]
        stop = start + len(tokens_L)
        self._tokens_in_row[microbatch, row] = stop
        self._examples_in_row[microbatch, row] += 1
        batch = self.batch
        batch.tokens[microbatch, row, start:stop] = tokens_L
        batch.targets[microbatch, row, start : stop - 1] = tokens_L[1:]
        batch.loss_mask[microbatch, row, start : stop - 1] = is_target_L[1:]
        batch.segment_ids[microbatch, row, start:stop] = self._examples_in_row[microbatch, row]
        batch.positions[microbatch, row, start:stop] = np.arange(len(tokens_L))
        batch.sources[microbatch, row, start:stop] = example.source
        return slice(start, stop)

    def _set_slots(self, example: Example, microbatch: int, row: int, tokens: slice, first_slot: int) -> None:
        query_L = example.tokens.image_query_L
        self.batch.image_slot[microbatch, row, tokens] = np.where(query_L < 0, -1, query_L + first_slot)

    def _decode(self, example: Example, first: int) -> concurrent.futures.Future[str]:
        """Decodes into `first` and the following images, counted over all microbatches."""
        if example.error:
            return finished(example.error)
        return self._decoders.submit(example.images, example.stated_sizes, self._pixels_IHWC, self._buffer, first)
