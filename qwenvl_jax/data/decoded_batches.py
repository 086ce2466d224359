"""The groups of all streams -> batches with decoded images: the last dataset of the pipeline.

Shape suffixes: A microbatches, B rows, L tokens.
"""

from __future__ import annotations

import atexit
import collections
import copy
import functools
import gc
import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain

from qwenvl_jax.config import DataConfig
from qwenvl_jax.data.batch_builder import BatchBuilder, PackedExample
from qwenvl_jax.data.images.pool import DecodePool
from qwenvl_jax.data.packed_groups import ExamplesOfGroup
from qwenvl_jax.data.schema import TOKEN_ARRAYS, Batch

TOTALS = ("tokens", "targets", "images", "shared")  # sums over the samples of a stream
TOTALS_BY_SOURCE = ("seen", "corrupt")

GroupsByStream = tuple[list[ExamplesOfGroup], ...]  # of one batch: the groups of each stream


class _Pending(NamedTuple):
    """A batch whose images may still be decoding, and the states of the streams after it."""

    batch: Batch
    packed: list[PackedExample]
    states: list[dict[str, Any]]


class ReturnedBatch(NamedTuple):
    """A batch with the examples that it was made from."""

    batch: Batch
    packed: list[PackedExample]


class DecodeIterDataset(grain.IterDataset[Batch]):
    """Batches, whose images are decoded on threads or, if `config.data.decode_workers` is not 0, in processes.

    Some batches are laid out ahead, so that their images are decoded while the devices work. The state belongs to the
    batch that was returned last. After an error, every later call raises the same one, until a state is set. After
    Ctrl-C, the next call returns the batch that was interrupted.

    Args:
      groups: of each batch, by stream.
      data: the config.
      streams: indices of the logical streams, ascending.
      queries: feature slots per image.
      prefetch: batches laid out ahead.
    """

    def __init__(
        self,
        groups: grain.IterDataset[GroupsByStream],
        data: DataConfig,
        streams: Sequence[int],
        queries: int,
        prefetch: int,
    ):
        super().__init__(groups)
        self._arguments = (data, streams, queries, prefetch)

    def __iter__(self) -> DecodeIterator:
        return DecodeIterator(self._parent.__iter__(), *self._arguments)

    def __str__(self) -> str:
        return "DecodeIterDataset"


class DecodeIterator(grain.DatasetIterator[Batch]):
    """See `DecodeIterDataset`."""

    def __init__(
        self,
        groups: grain.DatasetIterator[GroupsByStream],
        data: DataConfig,
        streams: Sequence[int],
        queries: int,
        prefetch: int,
    ):
        super().__init__(groups)
        self._data = data
        self._streams = streams
        self._queries = queries
        self._prefetch = prefetch
        workers = min(data.decode_workers, os.cpu_count() or 1)
        self._decoders = DecodePool(workers, data.image_size, data.image_decoder)
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)
        self._pending: collections.deque[_Pending] = collections.deque()
        self._states = self._parent.get_state()["parents"]
        self._totals = {stream: self._no_totals() for stream in streams}
        self._returned = self._state()
        self._last: ReturnedBatch | None = None
        self._error: Exception | None = None
        self._interrupted = False

    def _no_totals(self) -> dict[str, Any]:
        sums: dict[str, Any] = {"batches": 0, **dict.fromkeys(TOTALS, 0)}
        sources = len(self._data.mixture)
        return sums | {name: [0] * sources for name in TOTALS_BY_SOURCE} | {"errors": [""] * sources}

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._error is not None:
            raise self._error
        if self._interrupted:  # some streams may be ahead of others
            self.set_state(self._returned)
        try:
            batch = self._next_batch()
        except Exception as error:  # the datasets below would go on with other data
            self._error = error
            raise
        except BaseException:
            self._interrupted = True
            raise
        self._returned = self._state()
        return batch

    def _next_batch(self) -> Batch:
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._lay_out(next(self._parent)))
        batch, packed, self._states = self._pending.popleft()
        for total in self._totals.values():
            total["batches"] += 1
        for each in packed:
            error = each.error.result()
            self._assert_not_closed()  # by another thread
            if error:
                self._remove(each, batch, error)
            else:
                self._count(each)
        self._last = ReturnedBatch(batch, packed)
        return batch

    def _lay_out(self, groups_by_stream: GroupsByStream) -> _Pending:
        """The arrays of a batch, and its images as they are being decoded."""
        data = self._data
        builder = BatchBuilder(data, len(self._streams) / data.streams, self._queries, self._decoders)
        groups_per_stream = data.groups // data.streams
        for index, (stream, groups) in enumerate(zip(self._streams, groups_by_stream, strict=True)):
            for index_in_stream, rows in enumerate(groups):
                microbatch, group = divmod(index_in_stream, groups_per_stream)
                group += index * groups_per_stream
                for row, examples in enumerate(rows, start=group * data.group_rows):
                    for example in examples:
                        builder.add(example, stream, microbatch, group, row)
        return _Pending(builder.batch, builder.packed, self._parent.get_state()["parents"])

    def _count(self, packed: PackedExample) -> None:
        example = packed.example
        total = self._totals[packed.stream]
        total["seen"][example.source] += example.begins
        total["tokens"] += len(example.tokens.tokens_L)
        total["targets"] += int(example.tokens.is_target_L[1:].sum())
        total["shared" if packed.shared else "images"] += len(example.images)

    def _remove(self, packed: PackedExample, batch: Batch, error: str) -> None:
        """Turns a sample whose images cannot be read into padding, and counts it as corrupt."""
        example = packed.example
        total = self._totals[packed.stream]
        total["corrupt"][example.source] += 1
        source = self._data.mixture[example.source].name
        message = example.error or f"record {example.record_id!r} of source {source!r}: {error}"
        total["errors"][example.source] = total["errors"][example.source] or message
        for name in TOKEN_ARRAYS:
            getattr(batch, name)[packed.microbatch, packed.row, packed.tokens] = 0
        batch.image_slot[packed.microbatch, packed.row, packed.tokens] = -1
        batch.images[packed.microbatch, packed.images] = 0

    def get_state(self) -> dict[str, Any]:
        """The states of the streams, in their order, after the batch that was returned last, as JSON values."""
        return {"streams": [dict(stream) for stream in self._returned["streams"]]}

    def _state(self) -> dict[str, Any]:
        pairs = zip(self._states, self._totals.values(), strict=True)
        return {"streams": [state | {"totals": copy.deepcopy(totals)} for state, totals in pairs]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after a state; the next batches are bitwise the same as without a stop."""
        self._pending.clear()
        for number, stream in zip(self._streams, state["streams"], strict=True):
            self._totals[number] = copy.deepcopy(stream["totals"])
        self._states = [{key: value for key, value in each.items() if key != "totals"} for each in state["streams"]]
        self._parent.set_state({"parents": self._states})
        self._returned = self._state()
        self._error = None
        self._interrupted = False

    def last(self) -> ReturnedBatch:
        """The batch that was returned last. Raises ValueError before the first."""
        if self._last is None:
            raise ValueError("no batch has been returned yet")
        return self._last

    def workers(self) -> list[int]:
        """Process ids of the running decoders."""
        return self._decoders.processes()

    def close(self) -> None:
        """Ends threads and processes. Iterating further raises ValueError."""
        if not self._closed:
            atexit.unregister(self._at_exit)
            super().close()
            self._decoders.stop_waiting()
            self._parents = ()
            self._pending.clear()
            self._decoders.close()

    def __str__(self) -> str:
        return "DecodeIterator"


def _close_at_exit(iterator: weakref.ref[DecodeIterator]) -> None:
    """Closes an iterator before modules are torn down; later the process would abort, or Grain would print errors."""
    if (alive := iterator()) is not None:
        alive.close()
        gc.collect()  # datasets and iterators refer to one another
