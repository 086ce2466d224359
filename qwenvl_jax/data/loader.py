"""Batches for the training step: streams -> rows -> arrays and pixels, prefetched on a thread.

The global batch is the parts of `config.data.streams` logical streams one after the other. A process builds those
whose rows its devices hold; how many processes there are changes nothing.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import copy
import math
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwenvl_jax.config import Config
from qwenvl_jax.data import fingerprint
from qwenvl_jax.data.corruption import Tally, check_corruption
from qwenvl_jax.data.examples import Example
from qwenvl_jax.data.images.pool import DecodePool, finished
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.stream import Corpus, Stream, open_corpus
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError

READERS = 16  # threads that read and tokenise ahead
DROPPED_SHARE = 0.05  # of a source, left out because it does not fit, that is worth a line


class _Placed(NamedTuple):
    """A sample in its place in the batch, its images being decoded."""

    stream: int
    example: Example
    a: int
    row: int
    tokens: slice
    images: slice
    error: concurrent.futures.Future[str]


class _Ready(NamedTuple):
    """What the thread hands over: a batch whose images are being decoded, and the states of the streams after it."""

    batch: Batch
    placed: list[_Placed]
    states: dict[int, dict[str, Any]]


class Loader(Iterator[Batch]):
    """The parts of some logical streams, joined to batches and built ahead on a background thread.

    `state` and `counters` speak of the batches handed out, never of those prefetched. Use as a context manager, or
    call `close`, to end the threads.

    Args:
      corpus: what to read.
      streams: numbers of the streams, ascending.
      prefetch: batches built ahead.
    """

    def __init__(self, corpus: Corpus, streams: Sequence[int], prefetch: int):
        data = corpus.data
        self._corpus, self._data, self._prefetch = corpus, data, prefetch
        self._facts = corpus.facts()
        self._readers = concurrent.futures.ThreadPoolExecutor(READERS, "read")
        workers = min(data.decode_workers, os.cpu_count() or 1)
        self._decoders = DecodePool(workers, data.image_size, data.jpeg_draft)
        self._streams = {number: Stream(corpus, number, self._readers) for number in streams}
        self._states = {number: stream.state() for number, stream in self._streams.items()}
        self._totals = {number: self._no_totals() for number in streams}
        self._errors = [""] * len(data.mixture)
        self._warned: set[int] = set()
        self._thread: threading.Thread | None = None
        self._queue: queue.Queue[_Ready | BaseException] = queue.Queue(maxsize=prefetch)
        self._error: BaseException | None = None
        self._stop = threading.Event()

    def _no_totals(self) -> dict[str, Any]:
        zeros = [0] * len(self._data.mixture)
        return {"batches": 0, "tokens": 0, "targets": 0, "images": 0, "seen": [*zeros], "corrupt": [*zeros]}

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error  # whoever asks again gets the same answer
        if self._thread is None:
            self._start()
        ready = self._queue.get()
        try:
            if not isinstance(ready, _Ready):
                raise ready
            self._finish(ready)
        except Exception as error:
            self._error = error
            raise
        self._states = ready.states
        return ready.batch

    def _finish(self, ready: _Ready) -> None:
        """Waits for the images and counts. A sample with one that cannot be read leaves its places as padding."""
        batch, placed = ready.batch, ready.placed
        for total in self._totals.values():
            total["batches"] += 1
        for stream, example, a, row, tokens, images, reading in placed:
            total = self._totals[stream]
            error = reading.result()
            if error:
                total["corrupt"][example.source] += 1
                name = self._data.mixture[example.source].name
                said = example.error or f"record {example.record_id!r} of source {name!r}: {error}"
                self._errors[example.source] = self._errors[example.source] or said
                for array_ABL in batch[:6]:
                    array_ABL[a, row, tokens] = 0
                batch.image_slot[a, row, tokens] = -1
                batch.images[a, images] = 0
                continue
            total["seen"][example.source] += 1
            total["tokens"] += len(example.tokens.tokens_L)
            total["targets"] += int(example.tokens.is_target_L[1:].sum())
            total["images"] += len(example.images)
        counts = self.counters({"streams": {n: ready.states[n] | {"totals": own} for n, own in self._totals.items()}})
        self._check(counts, [stream.errors() for stream in self._streams.values()])

    def _check(self, counts: dict[str, Any], unreadable: Sequence[Sequence[str]]) -> None:
        """Looks at the totals after a batch.

        Raises:
          UserError: if more is corrupt than `config.data.max_corrupt_share` says.
        """
        tallies = []
        for number, (source, length) in enumerate(zip(self._data.mixture, self._corpus.lengths, strict=True)):
            corrupt, dropped = counts["corrupt"][source.name], counts["dropped"][source.name]
            judged = corrupt + dropped + counts["seen"][source.name]
            error = self._errors[number] or next((errors[number] for errors in unreadable if errors[number]), "")
            tallies.append(Tally(source.name, length, judged, corrupt, error))
            if number not in self._warned and dropped > DROPPED_SHARE * judged + 4 * math.sqrt(DROPPED_SHARE * judged):
                self._warned.add(number)
                log.line(
                    f"warning: {dropped} of {judged} samples of source {source.name!r} read so far do not fit a row "
                    f"(config.data.sequence_length {self._data.sequence_length}, {self._data.group_images} images per "
                    "group) and are left out, so it counts for less than its weight says"
                )
        check_corruption(tallies, self._data.max_corrupt_share, len(self._streams) / self._data.streams)

    def _build(self) -> _Ready:
        """Lays out the next batch and has its images decoded."""
        data, queries = self._data, self._corpus.queries
        share = len(self._streams) / data.streams
        shape = (data.accumulation, round(data.rows_per_microbatch * share), data.sequence_length)
        tokens_ABL, targets_ABL, segments_ABL, positions_ABL = (np.zeros(shape, np.int32) for _ in range(4))
        mask_ABL = np.zeros(shape, np.float32)
        slots_ABL = np.full(shape, -1, np.int32)
        images = (shape[0], round(data.image_budget * share), data.image_size, data.image_size, 3)
        buffer = self._decoders.buffer(images)
        images_AIHWC = buffer.array if buffer else np.zeros(images, np.uint8)
        pixels_IHWC = images_AIHWC.reshape(-1, *images[2:])
        placed = []
        next_image: collections.Counter[tuple[int, int]] = collections.Counter()
        for number, a, group, row, samples in self._next_rows():
            start = 0
            for segment, example in enumerate(samples, start=1):
                tokens_L, is_target_L, query_L, _ = example.tokens
                stop = start + len(tokens_L)
                tokens_ABL[a, row, start:stop] = tokens_L
                targets_ABL[a, row, start : stop - 1] = tokens_L[1:]
                mask_ABL[a, row, start : stop - 1] = is_target_L[1:]
                segments_ABL[a, row, start:stop] = segment
                positions_ABL[a, row, start:stop] = np.arange(len(tokens_L))
                place = next_image[a, group]
                next_image[a, group] += len(example.images)
                slots_ABL[a, row, start:stop] = np.where(query_L < 0, -1, query_L + place * queries)
                first = group * data.group_images + place
                if example.error:
                    error = finished(example.error)
                else:
                    at = a * images[1] + first
                    error = self._decoders.submit(example.images, example.stated_sizes, pixels_IHWC, buffer, at)
                own = slice(first, first + len(example.images))
                placed.append(_Placed(number, example, a, row, slice(start, stop), own, error))
                start = stop
        batch = Batch(tokens_ABL, targets_ABL, mask_ABL, segments_ABL, positions_ABL, slots_ABL, images_AIHWC)
        states = {number: stream.state() for number, stream in self._streams.items()}
        return _Ready(batch, placed, states)

    def _next_rows(self) -> Iterator[tuple[int, int, int, int, list[Example]]]:
        """The rows of the next batch: stream, microbatch, group and row in this process's part, and the samples."""
        data = self._data
        for at, (number, stream) in enumerate(self._streams.items()):
            for a, groups in enumerate(stream.next_part()):
                for group, rows in enumerate(groups, start=at * data.groups // data.streams):
                    for row, samples in enumerate(rows, start=group * data.group_rows):
                        yield number, a, group, row, samples

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` continues after the last batch handed out; see `join_states`."""
        totals = copy.deepcopy(self._totals)  # counted on in place; the streams' own states are new with every batch
        streams = {str(number): state | {"totals": totals[number]} for number, state in self._states.items()}
        return {"stream": fingerprint.combined(self._facts), "facts": self._facts, "streams": streams}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a state of all streams; the next batches are bitwise those of an unbroken run.

        Raises:
          UserError: if the state belongs to another stream.
        """
        if changed := self._corpus.differences(state, self._facts):
            raise UserError(
                f"the checkpoint's place in the data belongs to another stream: since then {'; '.join(changed)} "
                "changed; restore what was there or start a new run from its parameters"
            )
        self._halt()
        self._error = None
        for number, stream in self._streams.items():
            own = state["streams"][str(number)]
            stream.restore(own)
            self._totals[number] = copy.deepcopy(own["totals"])
        self._states = {number: stream.state() for number, stream in self._streams.items()}

    @property
    def lengths(self) -> dict[str, int]:
        """Records by source."""
        names = (source.name for source in self._data.mixture)
        return dict(zip(names, self._corpus.lengths, strict=True))

    def counters(self, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Totals over the batches handed out since the stream began.

        Args:
          state: of all streams (`join_states`), or its `tallies`; default that of this loader's.

        Returns:
          `batches`; by source `seen` samples, `epochs` of its records that were read, `dropped` samples (too long or
          too many images for a row) and `corrupt` ones (left out for a record or an image that cannot be read);
          `tokens`, `targets` (supervised) and `images`; the shares of places used, `token_fill` and `image_fill`.
        """
        data = self._data
        streams = list((state or self.state())["streams"].values())
        totals = [own["totals"] for own in streams]
        names = [source.name for source in data.mixture]

        def summed(lists: Sequence[Sequence[int]]) -> list[int]:
            return [sum(column) for column in zip(*lists, strict=True)]

        read, dropped, unreadable = (
            summed([own["counts"][kind] for own in streams]) for kind in ("read", "dropped", "unreadable")
        )
        epochs = [round(count / length, 4) for count, length in zip(read, self._corpus.lengths, strict=True)]
        corrupt = summed([unreadable, *(total["corrupt"] for total in totals)])
        tokens, targets, images = (sum(total[key] for total in totals) for key in ("tokens", "targets", "images"))
        batches = totals[0]["batches"]
        microbatches = max(1, batches * data.accumulation) * len(streams) / data.streams
        return {
            "batches": batches,
            "seen": dict(zip(names, summed([total["seen"] for total in totals]), strict=True)),
            "epochs": dict(zip(names, epochs, strict=True)),
            "dropped": dict(zip(names, dropped, strict=True)),
            "corrupt": dict(zip(names, corrupt, strict=True)),
            "tokens": tokens,
            "targets": targets,
            "images": images,
            "token_fill": tokens / (microbatches * data.rows_per_microbatch * data.sequence_length),
            "image_fill": images / (microbatches * data.image_budget),
        }

    def facts(self) -> dict[str, str]:
        """Everything the batches depend on, by name: the same in all processes of a run, and when it is continued."""
        return dict(self._facts)

    def workers(self) -> list[int]:
        """Ids of the decoding processes that have started."""
        return self._decoders.processes()

    def close(self) -> None:
        """Ends the threads. The loader cannot be used any more."""
        self._decoders.stop_waiting()
        self._halt()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._decoders.close()

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
        while self._thread.is_alive() or not self._queue.empty():
            try:  # makes room, so that a producer waiting on a full queue sees the event
                ready = self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(ready, _Ready):
                concurrent.futures.wait([placed.error for placed in ready.placed])
        atexit.unregister(self._halt)
        self._thread = None

    def _produce(self) -> None:
        target = self._queue
        try:
            while not self._stop.is_set():
                target.put(self._build())
        except BaseException as error:  # handed to whoever asks for the next batch
            target.put(error)


def tallies(state: dict[str, Any]) -> dict[str, Any]:
    """What `Loader.counters` needs of a state, which is a small part of it."""
    streams = {number: {key: own[key] for key in ("totals", "counts")} for number, own in state["streams"].items()}
    return {**state, "streams": streams}


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states (or tallies) of the loaders of all processes as one, which any number of processes can restore."""
    streams = {number: own for state in states for number, own in state["streams"].items()}
    return {**states[0], "streams": {number: streams[number] for number in sorted(streams, key=int)}}


def make_loader(
    config: Config, tokenizer: Tokenizer, *, streams: Sequence[int] | None = None, prefetch: int = 2
) -> Loader:
    """The batches of a stage: numpy arrays with a leading accumulation axis.

    Args:
      config: of the run.
      tokenizer: of the run.
      streams: which logical streams to build, ascending; default all of them, the whole global batch. Rows and
        images are those of these streams alone.
      prefetch: batches built ahead.

    Raises:
      UserError: if records are missing or of another task, or the tokenizer does not fit the model's vocabulary.
        While iterating: for a source of which nothing fits a row, or too much that cannot be read.
    """
    corpus = open_corpus(config, tokenizer)
    return Loader(corpus, range(config.data.streams) if streams is None else streams, prefetch)
