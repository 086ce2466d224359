"""Batches for the training step: mixture -> records -> tokens -> packing -> pixels, prefetched on a thread.

The stream is defined by (config.data, tokenizer, records) alone. Every process builds the whole global batch and
hands out its slice, so the number of hosts changes nothing. The state names only places in the mixture (which
samples the packer holds, and which place comes next); samples are read again on restore.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import copy
import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwenvl_jax.config import Config, DataConfig, to_dict
from qwenvl_jax.data.examples import Tokens, decode_images, tokenize_pieces
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.mixture import Mixture, open_sources
from qwenvl_jax.data.packing import Item, Packer, Row
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.sources import Source
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError

# Images that cannot be decoded are left out of the loss and counted; beyond this share, once this many were read,
# the data are taken to be broken. So are they if not one image of the first batch that has any can be read.
MAX_CORRUPT_SHARE = 0.01
MIN_READ = 100
ALL_DROPPED = 1000  # samples of a source that did not fit, and none that did, before the run is refused


class _Sample(NamedTuple):
    """A tokenised sample waiting for its row; images stay encoded until then."""

    source: int
    name: str
    tokens: Tokens
    images: tuple[bytes, ...]


class Stream:
    """The endless sequence of global batches, built in the calling thread. `Loader` adds the thread.

    Args:
      data: the stream's definition.
      readers: records of each source of `data.mixture`, in order.
      tokenizer, queries: as for `make_example`.
    """

    def __init__(self, data: DataConfig, readers: Sequence[Source], tokenizer: Tokenizer, queries: int):
        self._data, self._readers, self._tokenizer, self._queries = data, readers, tokenizer, queries
        lengths = [len(reader) for reader in readers]
        self._mixture = Mixture(data.mixture, lengths, data.seed)
        self._fingerprint = _fingerprint(data, lengths, tokenizer, queries)
        self._decoders = concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decode")
        self._reset()

    def _reset(self) -> None:
        data = self._data
        self._packer = Packer(
            data.group_rows, data.sequence_length, data.group_images, data.packing_window, data.groups
        )
        self._held: dict[int, _Sample] = {}
        self._next = 0
        self._counts: dict[str, Any] = {
            "batches": 0,
            "tokens": 0,
            "targets": 0,
            "images": 0,
            "corrupt_images": 0,
            "first_corrupt": "",
            "read": {source.name: 0 for source in data.mixture},
            "seen": {source.name: 0 for source in data.mixture},
            "dropped": {source.name: 0 for source in data.mixture},
            "corrupt": {source.name: 0 for source in data.mixture},
        }

    def state(self) -> dict[str, Any]:
        """Where the stream stands after the batches built so far, as JSON values."""
        return {
            "stream": self._fingerprint,
            "next": self._next,
            "packer": self._packer.state(),
            "counts": copy.deepcopy(self._counts),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a `state`, bitwise as if never stopped.

        Raises:
          UserError: if the state belongs to another stream.
        """
        if state.get("stream") != self._fingerprint:
            raise UserError(
                "the checkpoint's place in the data belongs to another stream (config.data, the records or the "
                "tokenizer changed); restore the old settings or start a new run from its parameters"
            )
        self._reset()
        self._next = state["next"]
        self._counts = copy.deepcopy(state["counts"])
        self._packer.restore(state["packer"], self._fetch)

    def close(self) -> None:
        """Ends the decoding threads."""
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> Batch:
        microbatches: list[list[list[Row]]] = []
        while len(microbatches) < self._data.accumulation:
            item = self._fetch(self._next)
            self._next += 1
            self._counts["read"][self._data.mixture[self._held[item.n].source].name] += 1
            if not self._packer.fits(item):
                self._drop(self._held.pop(item.n), item)
                continue
            groups = self._packer.add(item)
            if groups is not None:
                microbatches.append(groups)
        return self._assemble(microbatches)

    def _fetch(self, n: int) -> Item:
        """Reads and tokenises the sample at place `n`, and keeps it until it is emitted."""
        number, index = self._mixture[n]
        source = self._data.mixture[number]
        record = self._readers[number][index]
        tokens = tokenize_pieces(training_pieces(record), self._tokenizer, self._queries)
        images = tuple(record.images[k] for k in tokens.image_indices)
        self._held[n] = _Sample(number, record.id, tokens, images)
        return Item(n, source.task, len(tokens.tokens_L), len(images))

    def _drop(self, sample: _Sample, item: Item) -> None:
        """Counts a sample that no row can hold. A source of which nothing fits is a mistake in the config."""
        name = self._data.mixture[sample.source].name
        self._counts["dropped"][name] += 1
        read = self._counts["read"][name]
        if self._counts["dropped"][name] == read >= min(len(self._readers[sample.source]), ALL_DROPPED):
            raise UserError(
                f"no sample of source {name!r} fits a row: {sample.name!r} has {item.length} tokens and "
                f"{item.images} images for config.data.sequence_length {self._data.sequence_length} and an image "
                f"budget of {self._data.group_images}; raise them"
            )

    def _assemble(self, microbatches: Sequence[Sequence[Sequence[Row]]]) -> Batch:
        """Lays samples out and decodes their images. A sample with a corrupt image leaves its places as padding."""
        data = self._data
        shape = (data.accumulation, data.rows, data.sequence_length)
        tokens_ABL, targets_ABL, segments_ABL, positions_ABL = (np.zeros(shape, np.int32) for _ in range(4))
        mask_ABL = np.zeros(shape, np.float32)
        slots_ABL = np.full(shape, -1, np.int32)
        images_AIHWC = np.zeros((shape[0], data.image_budget, data.image_size, data.image_size, 3), np.uint8)
        placed = [
            (a, g, g * data.group_rows + k, segment, self._held.pop(item.n))
            for a, groups in enumerate(microbatches)
            for g, rows in enumerate(groups)
            for k, row in enumerate(rows)
            for segment, item in enumerate(row.items, start=1)
        ]
        decoded = list(self._decoders.map(self._decode, [sample for *_, sample in placed]))
        self._counts["batches"] += 1
        next_image: collections.Counter[tuple[int, int]] = collections.Counter()
        next_place: collections.Counter[tuple[int, int]] = collections.Counter()
        for (a, g, b, segment, sample), images_IHWC in zip(placed, decoded, strict=True):
            start = next_place[a, b]
            tokens_L, is_target_L, query_L, _ = sample.tokens
            stop = start + len(tokens_L)
            next_place[a, b] = stop
            source = data.mixture[sample.source].name
            self._counts["images"] += len(sample.images)
            if isinstance(images_IHWC, UserError):
                self._counts["corrupt"][source] += 1
                self._counts["corrupt_images"] += 1
                self._counts["first_corrupt"] = (
                    self._counts["first_corrupt"] or f"record {sample.name!r}: {images_IHWC}"
                )
                continue
            self._counts["seen"][source] += 1
            self._counts["tokens"] += len(tokens_L)
            tokens_ABL[a, b, start:stop] = tokens_L
            targets_ABL[a, b, start : stop - 1] = tokens_L[1:]
            mask_ABL[a, b, start : stop - 1] = is_target_L[1:]
            segments_ABL[a, b, start:stop] = segment
            positions_ABL[a, b, start:stop] = np.arange(len(tokens_L))
            first = next_image[a, g]
            next_image[a, g] = first + len(images_IHWC)
            place = g * data.group_images + first
            images_AIHWC[a, place : place + len(images_IHWC)] = images_IHWC
            slots_ABL[a, b, start:stop] = np.where(query_L < 0, -1, query_L + first * self._queries)
        self._counts["targets"] += int(mask_ABL.sum())
        self._check_corruption()
        return Batch(tokens_ABL, targets_ABL, mask_ABL, segments_ABL, positions_ABL, slots_ABL, images_AIHWC)

    def _decode(self, sample: _Sample) -> np.ndarray | UserError:
        try:
            return decode_images(sample.images, range(len(sample.images)), self._data.image_size)
        except UserError as error:
            return error

    def _check_corruption(self) -> None:
        read, corrupt = self._counts["images"], self._counts["corrupt_images"]
        if corrupt and (corrupt == read or (read >= MIN_READ and corrupt > MAX_CORRUPT_SHARE * read)):
            raise UserError(
                f"{corrupt} of {read} images read so far are corrupt, the first in {self._counts['first_corrupt']}; "
                "mend or remove them, or write the record folders again"
            )


def summarize(counts: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    """Raw totals to what `Loader.counters` returns."""
    microbatches = counts["batches"] * data.accumulation
    token_places = microbatches * data.rows * data.sequence_length
    return {
        "batches": counts["batches"],
        "seen": dict(counts["seen"]),
        "dropped": dict(counts["dropped"]),
        "corrupt": dict(counts["corrupt"]),
        "tokens": counts["tokens"],
        "targets": counts["targets"],
        "images": counts["images"] - counts["corrupt_images"],
        "token_fill": counts["tokens"] / token_places if token_places else 0.0,
        "image_fill": counts["images"] / (microbatches * data.image_budget) if microbatches else 0.0,
    }


def _fingerprint(data: DataConfig, lengths: Sequence[int], tokenizer: Tokenizer, queries: int) -> str:
    """Twelve hex digits of everything the batches depend on; the records' folder may move."""
    values = to_dict(data)
    for source, length in zip(values["mixture"], lengths, strict=True):
        source["records"] = length
    probe = tokenizer.encode("A dog, 12 birds\n一只猫 été")
    text = json.dumps([values, queries, tokenizer.vocab_size, probe], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Ready(NamedTuple):
    """What the thread hands over: a batch with the stream's state after it, or the error that ended it."""

    batch: Batch | None
    state: dict[str, Any] | None
    error: BaseException | None


class Loader(Iterator[Batch]):
    """Batches of a stream, built ahead on a background thread.

    `state` and `counters` speak of the batches handed out, never of those prefetched. Use as a context manager, or
    call `close`, to end the thread.

    Args:
      stream: what to read.
      data: its config.
      process_index, process_count: which slice of rows and images to hand out.
      prefetch: batches built ahead.
    """

    def __init__(self, stream: Stream, data: DataConfig, process_index: int, process_count: int, prefetch: int):
        for what, size in (("rows", data.rows), ("images", data.image_budget)):
            if size % process_count:
                raise UserError(
                    f"the {size} {what} of a microbatch do not divide among {process_count} processes; change "
                    "config.data.global_batch_size, accumulation or images_per_row"
                )
        self._stream, self._data, self._prefetch = stream, data, prefetch
        self._index, self._count = process_index, process_count
        self._state = stream.state()
        self._thread: threading.Thread | None = None
        self._queue: queue.Queue[_Ready] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()

    def __next__(self) -> Batch:
        if self._thread is None:
            self._start()
        ready = self._queue.get()
        if ready.error is not None:
            self._queue.put(ready)  # whoever asks again gets the same answer
            raise ready.error
        assert ready.batch is not None and ready.state is not None
        self._state = ready.state
        return self._slice(ready.batch)

    def _slice(self, batch: Batch) -> Batch:
        """Rows and images of this process; image slots keep counting through the whole image group."""
        if self._count == 1:
            return batch
        parts = []
        for array in batch:
            share = array.shape[1] // self._count
            parts.append(array[:, self._index * share : (self._index + 1) * share])
        return Batch(*parts)

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` continues after the last batch handed out."""
        return copy.deepcopy(self._state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after `state`; the next batches are bitwise those of an unbroken run.

        Raises:
          UserError: if the state belongs to another stream.
        """
        self._halt()
        self._stream.restore(state)
        self._state = self._stream.state()

    def counters(self) -> dict[str, Any]:
        """Totals over the batches handed out since the stream began, over all processes.

        Returns:
          `batches`; per source `seen` samples, `dropped` (too long or too many images for a row) and `corrupt`
          (left out for an unreadable image); `tokens`, `targets` (supervised) and `images`; and the shares of
          places used, `token_fill` and `image_fill`.
        """
        return summarize(self._state["counts"], self._data)

    def close(self) -> None:
        """Ends the threads. The loader cannot be used any more."""
        self._halt()
        self._stream.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._stop.clear()
        # A daemon thread that is inside a native library when the interpreter ends aborts the process.
        atexit.register(self._halt)
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)
        self._thread.start()

    def _halt(self) -> None:
        if self._thread is None:
            return
        self._stop.set()
        while self._thread.is_alive():
            try:  # makes room, so that a producer waiting on a full queue sees the event
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        atexit.unregister(self._halt)
        self._thread = None
        self._queue = queue.Queue(maxsize=self._prefetch)

    def _produce(self) -> None:
        target = self._queue
        try:
            while not self._stop.is_set():
                batch = next(self._stream)
                target.put(_Ready(batch, self._stream.state(), None))
        except BaseException as error:  # handed to whoever asks for the next batch
            target.put(_Ready(None, None, error))


def make_loader(
    config: Config, tokenizer: Tokenizer, *, process_index: int = 0, process_count: int = 1, prefetch: int = 2
) -> Loader:
    """The batches of a stage: numpy arrays with a leading accumulation axis.

    Raises:
      UserError: if records are missing or of another task, the tokenizer does not fit the model's vocabulary, or
        the batch does not divide among the processes. While iterating: for content that does not fit its task, or
        too many corrupt images.
    """
    decoder = config.model.decoder
    if tokenizer.vocab_size > decoder.vocab_size:
        raise UserError(
            f"the tokenizer uses {tokenizer.vocab_size} ids, but config.model.decoder.vocab_size is "
            f"{decoder.vocab_size}; choose a smaller vocabulary or a larger model vocabulary"
        )
    readers = open_sources(config.data)
    stream = Stream(config.data, readers, tokenizer, config.model.resampler.queries)
    return Loader(stream, config.data, process_index, process_count, prefetch)
