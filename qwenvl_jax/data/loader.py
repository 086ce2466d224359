"""Batches for the training step: streams -> rows -> arrays and pixels, prefetched on a thread.

The batch is the concatenation of the parts of `config.data.streams` logical streams. A process builds the parts
whose rows its devices hold; the number of processes changes nothing.

Shape suffixes: A microbatches, B rows, L tokens, I images, H/W pixels.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import copy
import math
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qwenvl_jax.config import Config
from qwenvl_jax.data import fingerprint
from qwenvl_jax.data.batch_builder import BatchBuilder, PackedExample
from qwenvl_jax.data.corruption import Tally, check_corruption
from qwenvl_jax.data.images.pool import DecodePool
from qwenvl_jax.data.schema import TOKEN_ARRAYS, Batch
from qwenvl_jax.data.stream import ExampleReader, Stream, open_examples
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError

READERS = 16  # threads that read and tokenise ahead
DROPPED_SHARE = 0.05  # share of a source above which a warning says how many samples do not fit a row


class _Ready(NamedTuple):
    """A batch from the thread, whose images may still be decoding, and the states of the streams after it."""

    batch: Batch
    packed: list[PackedExample]
    states: dict[int, dict[str, Any]]


class Loader(Iterator[Batch]):
    """Joins the parts of some logical streams to batches, which a background thread builds ahead.

    `state` and `counters` count the batches that were returned, never those prefetched. Use it as a context manager, or
    call `close`, to end the threads.

    Args:
      examples_reader: what to read.
      streams: numbers of the streams, ascending.
      prefetch: batches built ahead.
    """

    def __init__(self, examples_reader: ExampleReader, streams: Sequence[int], prefetch: int):
        data = examples_reader.data
        self._examples = examples_reader
        self._data = data
        self._prefetch = prefetch
        self._facts = examples_reader.facts()
        self._readers = concurrent.futures.ThreadPoolExecutor(READERS, "read")
        workers = min(data.decode_workers, os.cpu_count() or 1)
        self._decoders = DecodePool(workers, data.image_size, data.jpeg_draft)
        self._streams = {number: Stream(examples_reader, number, self._readers) for number in streams}
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
            raise self._error  # every later call gets the same error
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
        """Waits for the images and counts. The tokens of a sample with an unreadable image become padding."""
        for total in self._totals.values():
            total["batches"] += 1
        for packed in ready.packed:
            error = packed.error.result()
            if error:
                self._remove(packed, ready.batch, error)
            else:
                self._count(packed)
        streams = {number: ready.states[number] | {"totals": total} for number, total in self._totals.items()}
        self._check(self.counters({"streams": streams}), [stream.errors() for stream in self._streams.values()])

    def _count(self, packed: PackedExample) -> None:
        example = packed.example
        total = self._totals[packed.stream]
        total["seen"][example.source] += 1
        total["tokens"] += len(example.tokens.tokens_L)
        total["targets"] += int(example.tokens.is_target_L[1:].sum())
        total["images"] += len(example.images)

    def _remove(self, packed: PackedExample, batch: Batch, error: str) -> None:
        """Turns a sample whose images cannot be read into padding, and counts it as corrupt."""
        example = packed.example
        self._totals[packed.stream]["corrupt"][example.source] += 1
        name = self._data.mixture[example.source].name
        message = example.error or f"record {example.record_id!r} of source {name!r}: {error}"
        self._errors[example.source] = self._errors[example.source] or message
        for name in TOKEN_ARRAYS:
            getattr(batch, name)[packed.microbatch, packed.row, packed.tokens] = 0
        batch.image_slot[packed.microbatch, packed.row, packed.tokens] = -1
        batch.images[packed.microbatch, packed.images] = 0

    def _check(self, counts: dict[str, Any], unreadable: Sequence[Sequence[str]]) -> None:
        """Warns once of a source that loses many samples because they do not fit.

        Args:
          counts: `counters` after a batch.
          unreadable: `Stream.errors` of every stream.

        Raises:
          UserError: if more samples are corrupt than `config.data.max_corrupt_share` allows.
        """
        tallies = []
        for number, (source, length) in enumerate(zip(self._data.mixture, self._examples.lengths, strict=True)):
            corrupt = counts["corrupt"][source.name]
            dropped = counts["dropped"][source.name]
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
        share = len(self._streams) / self._data.streams
        builder = BatchBuilder(self._data, share, self._examples.queries, self._decoders)
        groups_per_stream = self._data.groups // self._data.streams
        for index, (number, stream) in enumerate(self._streams.items()):
            first_group = index * groups_per_stream
            for microbatch, groups in enumerate(stream.next_part()):
                for group, rows in enumerate(groups, start=first_group):
                    for row, examples in enumerate(rows, start=group * self._data.group_rows):
                        for example in examples:
                            builder.add(example, number, microbatch, group, row)
        states = {number: stream.state() for number, stream in self._streams.items()}
        return _Ready(builder.batch, builder.packed, states)

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` continues after the last batch handed out; see `join_states`."""
        totals = copy.deepcopy(self._totals)  # these are updated in place; the states of the streams are never changed
        streams = {str(number): state | {"totals": totals[number]} for number, state in self._states.items()}
        return {"stream": fingerprint.combined(self._facts), "facts": self._facts, "streams": streams}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a state of all streams; the next batches are bitwise those of an unbroken run.

        Raises:
          UserError: if the state belongs to another stream.
        """
        if changed := self._examples.differences(state, self._facts):
            raise UserError(
                f"the checkpoint's position in the data belongs to another stream: since then {'; '.join(changed)} "
                "changed; restore what was there or start a new run from its parameters"
            )
        self._halt()
        self._error = None
        for number, stream in self._streams.items():
            stream_state = state["streams"][str(number)]
            stream.restore(stream_state)
            self._totals[number] = copy.deepcopy(stream_state["totals"])
        self._states = {number: stream.state() for number, stream in self._streams.items()}

    @property
    def lengths(self) -> dict[str, int]:
        """Records by source."""
        names = (source.name for source in self._data.mixture)
        return dict(zip(names, self._examples.lengths, strict=True))

    def counters(self, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Totals over the batches handed out since the stream began.

        Args:
          state: of all streams (`join_states`), or its `counts_of`; by default that of this loader's streams.

        Returns:
          `batches`; by source `seen` samples, `epochs` of its records that were read, `dropped` samples (too long or
          too many images for a row) and `corrupt` samples (with a record or an image that cannot be read); `tokens`,
          `targets` (supervised) and `images`; `token_fill` and `image_fill`, the used shares of the budgets.
        """
        data = self._data
        streams = list((state or self.state())["streams"].values())
        totals = [stream["totals"] for stream in streams]
        counts = [stream["counts"] for stream in streams]
        names = [source.name for source in data.mixture]

        def summed(lists: Sequence[Sequence[int]]) -> list[int]:
            return [sum(column) for column in zip(*lists, strict=True)]

        read = summed([count["read"] for count in counts])
        dropped = summed([count["dropped"] for count in counts])
        unreadable = summed([count["unreadable"] for count in counts])
        epochs = [round(count / length, 4) for count, length in zip(read, self._examples.lengths, strict=True)]
        corrupt = summed([unreadable, *(total["corrupt"] for total in totals)])
        tokens = sum(total["tokens"] for total in totals)
        images = sum(total["images"] for total in totals)
        batches = totals[0]["batches"]
        microbatches = max(1, batches * data.accumulation) * len(streams) / data.streams
        return {
            "batches": batches,
            "seen": dict(zip(names, summed([total["seen"] for total in totals]), strict=True)),
            "epochs": dict(zip(names, epochs, strict=True)),
            "dropped": dict(zip(names, dropped, strict=True)),
            "corrupt": dict(zip(names, corrupt, strict=True)),
            "tokens": tokens,
            "targets": sum(total["targets"] for total in totals),
            "images": images,
            "token_fill": tokens / (microbatches * data.rows_per_microbatch * data.sequence_length),
            "image_fill": images / (microbatches * data.image_budget),
        }

    def facts(self) -> dict[str, str]:
        """Everything the batches depend on, by name. It is the same in all processes, and when the run is continued."""
        return dict(self._facts)

    def workers(self) -> list[int]:
        """Process ids of the running decoders."""
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
        # If a daemon thread is inside a native library when the interpreter ends, the process aborts.
        atexit.register(self._halt)
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)
        self._thread.start()

    def _halt(self) -> None:
        if self._thread is None:
            return
        self._stop.set()
        while self._thread.is_alive() or not self._queue.empty():
            try:  # makes room in a full queue, so that the waiting producer sees the event
                ready = self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(ready, _Ready):
                concurrent.futures.wait([packed.error for packed in ready.packed])
        atexit.unregister(self._halt)
        self._thread = None

    def _produce(self) -> None:
        target = self._queue
        try:
            while not self._stop.is_set():
                target.put(self._build())
        except BaseException as error:  # raised by the next call of `__next__`
            target.put(error)


def counts_of(state: dict[str, Any]) -> dict[str, Any]:
    """The small part of a state that `Loader.counters` needs."""
    streams = {}
    for number, stream in state["streams"].items():
        streams[number] = {"totals": stream["totals"], "counts": stream["counts"]}
    return {**state, "streams": streams}


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states (or their `counts_of`) of the loaders of all processes as one.

    Any number of processes can restore a joined state.
    """
    streams: dict[str, Any] = {}
    for state in states:
        streams.update(state["streams"])
    return {**states[0], "streams": {number: streams[number] for number in sorted(streams, key=int)}}


def make_loader(
    config: Config, tokenizer: Tokenizer, *, streams: Sequence[int] | None = None, prefetch: int = 2
) -> Loader:
    """The batches of a stage: numpy arrays with a leading accumulation axis.

    Args:
      config: of the run.
      tokenizer: of the run.
      streams: numbers of the logical streams to build, ascending; by default all, which gives the whole batch. The
        batches have the rows and images of these streams alone.
      prefetch: batches built ahead.

    Raises:
      UserError: if records are missing or of another task, or the tokenizer does not fit the model's vocabulary.
        While iterating: if no sample of a source fits a row, or too many samples are corrupt.
    """
    examples_reader = open_examples(config, tokenizer)
    return Loader(examples_reader, range(config.data.streams) if streams is None else streams, prefetch)
