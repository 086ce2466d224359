"""The pipeline as the training loop uses it: batches, the position for a checkpoint, and counters.

Every one of the `config.data.streams` logical streams fills an equal share of the rows and images of a batch. A process
builds the shares whose rows its devices hold; the number of processes changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from qwenvl_jax.config import Config
from qwenvl_jax.data import fingerprint
from qwenvl_jax.data.corruption import Tally, check_corruption
from qwenvl_jax.data.decoded_batches import ReturnedBatch
from qwenvl_jax.data.mixture_reader import MixtureReader, open_mixture
from qwenvl_jax.data.packed_groups import COUNTS
from qwenvl_jax.data.pipeline import batches
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError

LOST_SHARE = 0.05  # share of a source's samples above which a warning says how many do not fit a row


class Loader(Iterator[Batch]):
    """Iterates over a pipeline. After an error, every later call raises the same one.

    `state` and `counters` count the batches that were returned, never those prefetched. Use it as a context manager, or
    call `close`, to end the threads.

    Args:
      reader: of the mixture.
      streams: indices of the logical streams, ascending.
      prefetch: batches laid out ahead.
    """

    def __init__(self, reader: MixtureReader, streams: Sequence[int], prefetch: int):
        self._reader = reader
        self._data = reader.data
        self._streams = streams
        self._facts = reader.facts()
        self._dataset = batches(reader, streams, prefetch)
        self._iterator = self._dataset.__iter__()
        self._warned: set[int] = set()
        self._error: Exception | None = None

    def __next__(self) -> Batch:
        if self._error is None:
            try:
                batch = next(self._iterator)
                self._check()
                return batch
            except Exception as error:  # of the pipeline, which keeps its own, or of `_check`
                self._error = error
        raise self._error

    def _check(self) -> None:
        """Warns once of a source that loses many samples because they do not fit.

        Raises:
          UserError: if more samples are corrupt than `config.data.max_corrupt_share` allows.
        """
        state = self.state()
        counts = self.counters(state)
        errors = self.errors(state)
        of_streams = [stream["counts"]["fitting"] for stream in state["streams"].values()]
        fitting = [sum(counts) for counts in zip(*of_streams, strict=True)]
        tallies = []
        for index, (source, samples) in enumerate(zip(self._data.mixture, self._reader.samples, strict=True)):
            seen, cut, dropped, corrupt = (counts[key][source.name] for key in ("seen", "cut", "dropped", "corrupt"))
            judged = corrupt + dropped + seen
            tallies.append(Tally(source.name, samples, judged, corrupt, errors[index]))
            lost = dropped if source.task == "text" else dropped + cut  # a text that is cut continues in another row
            read = fitting[index] + dropped  # `seen` lags behind these, because samples wait for their row
            if index not in self._warned and lost > LOST_SHARE * read + 4 * math.sqrt(LOST_SHARE * read):
                self._warned.add(index)
                log.line(
                    f"warning: of {read} samples of source {source.name!r} read so far, {dropped} do not fit a row "
                    f"and are left out, and {cut} are cut (config.data.sequence_length {self._data.sequence_length}, "
                    f"{self._data.group_images} images per group), so it counts for less than its weight says"
                )
        check_corruption(tallies, self._data.max_corrupt_share, len(self._streams) / self._data.streams)

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` continues after the last batch handed out; see `join_states`."""
        streams = dict(zip(map(str, self._streams), self._iterator.get_state()["streams"], strict=True))
        return {"stream": fingerprint.combined(self._facts), "facts": self._facts, "streams": streams}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a state of all streams; the next batches are bitwise those of an unbroken run.

        Raises:
          UserError: if the state belongs to another stream.
        """
        if changed := fingerprint.changes(state.get("facts", {}), self._facts):
            raise UserError(
                f"the checkpoint's position in the data belongs to another stream: since then {'; '.join(changed)} "
                "changed; restore what was there or start a new run from its parameters"
            )
        self._iterator.close()
        self._iterator = self._dataset.__iter__()
        self._iterator.set_state({"streams": [state["streams"][str(number)] for number in self._streams]})
        self._error = None

    @property
    def samples(self) -> dict[str, int]:
        """Samples by source: those of all its records."""
        names = (source.name for source in self._data.mixture)
        return dict(zip(names, self._reader.samples, strict=True))

    @property
    def samples_per_row(self) -> float:
        """The mean over the batches handed out; 0 before the first."""
        counts = self.counters()
        rows = counts["batches"] * self._data.rows_per_step * len(self._streams) / self._data.streams
        return sum(counts["seen"].values()) / rows if rows else 0.0

    def counters(self, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Totals over the batches handed out since the stage began.

        Args:
          state: of all streams (`join_states`), or its `counts_of`; by default that of this loader's streams.

        Returns:
          `batches`, `tokens`, `targets` (supervised), `images` (decoded), and `shared`, which counts how often a
          further sample of an image group showed one of them; by source `seen`, `cut` and `dropped` samples (which do
          not fit a row), `epochs` of the records that were read, `filtered` records, and `corrupt` ones (samples with
          an image, and records, that cannot be read); `token_fill` and `image_fill`, the used shares of the budgets.
        """
        data = self._data
        streams = list((state or self.state())["streams"].values())
        totals = [stream["totals"] for stream in streams]
        names = [source.name for source in data.mixture]

        def by_source(lists: Sequence[Sequence[float]]) -> dict[str, Any]:
            return dict(zip(names, map(sum, zip(*lists, strict=True)), strict=True))

        counts = {name: [stream["counts"][name] for stream in streams] for name in COUNTS}
        epochs = {
            name: round(count / records, 4)
            for (name, count), records in zip(by_source(counts["read"]).items(), self._reader.records, strict=True)
        }
        sums = {name: sum(total[name] for total in totals) for name in ("tokens", "targets", "images", "shared")}
        batches_made = totals[0]["batches"]
        microbatches = max(1, batches_made * data.accumulation) * len(streams) / data.streams
        return {
            "batches": batches_made,
            "seen": by_source([total["seen"] for total in totals]),
            "epochs": epochs,
            **{name: by_source(counts[name]) for name in ("cut", "dropped", "filtered")},
            "corrupt": by_source([*counts["unreadable"], *(total["corrupt"] for total in totals)]),
            **sums,
            "token_fill": sums["tokens"] / (microbatches * data.rows_per_microbatch * data.sequence_length),
            "image_fill": sums["images"] / (microbatches * data.image_budget),
        }

    def errors(self, state: dict[str, Any] | None = None) -> list[str]:
        """Of every source, the error of one corrupt sample; "" if there is none."""
        streams = (state or self.state())["streams"].values()
        of_streams = [errors for stream in streams for errors in (stream["errors"], stream["totals"]["errors"])]
        return [next(filter(None, errors), "") for errors in zip(*of_streams, strict=True)]

    def facts(self) -> dict[str, str]:
        """Everything the batches depend on, by name. It is the same in all processes, and when the run is continued."""
        return dict(self._facts)

    def last(self) -> ReturnedBatch:
        """The batch that was returned last, with the examples that it was made from."""
        return self._iterator.last()

    def workers(self) -> list[int]:
        """Process ids of the running decoders."""
        return self._iterator.workers()

    def close(self) -> None:
        """Ends threads and processes. The loader cannot be used any more."""
        self._iterator.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
    config: Config,
    tokenizer: Tokenizer,
    *,
    split: str = "train",
    streams: Sequence[int] | None = None,
    prefetch: int = 2,
) -> Loader:
    """The batches of a stage with its position and counters; arguments and errors as for `pipeline.pipeline`."""
    reader = open_mixture(config, tokenizer, split=split)
    return Loader(reader, range(config.data.streams) if streams is None else streams, prefetch)
