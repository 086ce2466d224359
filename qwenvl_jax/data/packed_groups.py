"""A stream of drawn records -> groups of rows of examples: a dataset of Grain around the packer.

Its state names the samples that the packer holds by the positions of their records in the stream; after a restore these
records are read again, all at once.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import grain
import numpy as np

from qwenvl_jax.config import DataConfig
from qwenvl_jax.data.corruption import CERTAIN, Tally, check_corruption
from qwenvl_jax.data.examples import DrawnRecord, Example, Tokens
from qwenvl_jax.data.mixture_reader import MixtureReader
from qwenvl_jax.data.packing import Item, Packer, Row
from qwenvl_jax.runtime.errors import UserError, one_line

ALL_DROPPED = 1000  # give up after this many dropped samples of a source if none has fitted
ALL_UNUSED = 10_000  # give up after this many records if none has given a sample
COUNTS = ("read", "fitting", "cut", "dropped", "filtered", "unreadable")

ExamplesOfRow = list[Example]
ExamplesOfGroup = list[ExamplesOfRow]


class PackIterDataset(grain.IterDataset[ExamplesOfGroup]):
    """The endless sequence of groups of rows of one logical stream.

    Args:
      reader: of the mixture.
      records: that the stream draws (`pipeline.drawn_records`).
      read_options: the threads that read ahead.
    """

    def __init__(self, reader: MixtureReader, records: grain.MapDataset[DrawnRecord], read_options: grain.ReadOptions):
        super().__init__()
        self._reader = reader
        self._records = records
        self._read_options = read_options

    def __iter__(self) -> PackIterator:
        return PackIterator(self._reader, self._records, self._read_options)

    def __str__(self) -> str:
        return "PackIterDataset"


class PackIterator(grain.DatasetIterator[ExamplesOfGroup]):
    """See `PackIterDataset`."""

    def __init__(self, reader: MixtureReader, records: grain.MapDataset[DrawnRecord], read_options: grain.ReadOptions):
        super().__init__(records.to_iter_dataset(read_options).__iter__())
        data = reader.data
        self._reader = reader
        self._records = records
        self._threads = read_options.num_threads
        self._packer = make_packer(data, reader.queries)
        self._held: dict[int, DrawnRecord] = {}  # by position in the stream
        self._unread: set[int] = set()  # positions of records that were held over a restart
        self._next = 0
        self._counts = {name: [0] * len(data.mixture) for name in COUNTS}
        self._errors = [""] * len(data.mixture)

    def __next__(self) -> ExamplesOfGroup:
        try:
            return self._next_group()
        except Exception:
            raise
        except BaseException as error:  # it would end the thread that reads ahead, and the reader would wait for ever
            raise RuntimeError(f"reading records ended with {type(error).__name__}: {one_line(error)}") from error

    def _next_group(self) -> ExamplesOfGroup:
        if self._unread:
            self._read_again()
        while (rows := self._packer.next_group()) is None:
            self._add(next(self._parent))
        group = [self._examples(row) for row in rows]
        held = {item.position for item in self._packer.held()}
        self._held = {position: drawn for position, drawn in self._held.items() if position in held}
        return group

    def _add(self, drawn: DrawnRecord) -> None:
        position = self._next
        self._next += 1
        source = drawn.source
        fitting = sum(example.begins for example in drawn.examples)
        self._count(source, read=1, fitting=fitting, cut=drawn.cut, dropped=len(drawn.dropped))
        self._count(source, filtered=drawn.filtered, unreadable=drawn.unreadable)
        if drawn.unreadable:
            self._errors[source] = self._errors[source] or drawn.message
            check_corruption(self._tallies(), self._reader.data.max_corrupt_share, 1 / self._reader.data.streams)
        elif drawn.dropped:
            self._check_fits(drawn)
        if not drawn.examples:
            self._check_used(source)
        for item in items_of(drawn, self._reader.data.mixture[source].task, position):
            self._held[position] = drawn
            self._packer.add(item)

    def _count(self, source: int, **numbers: int) -> None:
        for name, number in numbers.items():
            self._counts[name][source] += number

    def _examples(self, row: Row) -> ExamplesOfRow:
        return [
            example._replace(position=item.position)
            for item in row.items
            for example in self._held[item.position].examples[item.first : item.first + len(item.lengths)]
        ]

    def _read_again(self) -> None:
        """Reads the records that were held over a restart.

        Tokens are already reserved for them in rows. If a record has been damaged since then, these stay empty, as
        they do if its images cannot be decoded.
        """
        with concurrent.futures.ThreadPoolExecutor(max(1, self._threads)) as threads:
            positions = sorted(self._unread)
            self._held = dict(zip(positions, threads.map(self._records.__getitem__, positions), strict=True))
        for item in self._packer.held():
            drawn = self._held[item.position]
            examples = drawn.examples[item.first : item.first + len(item.lengths)]
            if tuple(len(example.tokens.tokens_L) for example in examples) != item.lengths or any(
                len(example.images) != item.images for example in examples
            ):
                self._held[item.position] = _with_placeholders(drawn, item)
        self._unread = set()

    def _tallies(self) -> list[Tally]:
        data = self._reader.data
        names = [source.name for source in data.mixture]
        read = self._counts["read"]
        return list(map(Tally, names, self._reader.records, read, self._counts["unreadable"], self._errors))

    def _check_fits(self, drawn: DrawnRecord) -> None:
        """Raises UserError if no sample of a source fits, which is a mistake in the config."""
        data = self._reader.data
        source = drawn.source
        enough = min(self._reader.samples[source], ALL_DROPPED)
        if not self._counts["fitting"][source] and self._counts["dropped"][source] >= enough:
            raise UserError(
                f"no sample of source {data.mixture[source].name!r} fits a row: {drawn.message}; raise "
                f"config.data.sequence_length {data.sequence_length} or the image budget of {data.group_images}"
            )

    def _check_used(self, source: int) -> None:
        """Raises UserError if nothing is left of a source that is filtered, or of all sources: it would never end."""
        data = self._reader.data
        counts = self._counts
        if counts["filtered"][source]:
            sources = [source]
            name = f"source {data.mixture[source].name!r}"
        else:
            sources = list(range(len(data.mixture)))
            name = "all sources"
        read, fitting, filtered, unreadable = (
            sum(counts[key][index] for index in sources) for key in ("read", "fitting", "filtered", "unreadable")
        )
        records = sum(self._reader.records[index] for index in sources)
        if not fitting and read >= min(CERTAIN * records, ALL_UNUSED):
            error = next((f" ({self._errors[index]})" for index in sources if self._errors[index]), "")
            raise UserError(
                f"the first {read} records of {name} leave no sample: config.data.transformations removes {filtered}, "
                f"and {unreadable} cannot be read{error}; mend the transformations or the records"
            )

    def get_state(self) -> dict[str, Any]:
        """The position of the stream, as JSON values."""
        counts = {name: [*values] for name, values in self._counts.items()}
        return {"next": self._next, "packer": self._packer.state(), "counts": counts, "errors": [*self._errors]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after a state; everything that follows is bitwise the same as without a stop."""
        self._next = state["next"]
        self._parent.set_state({"next_index": self._next})
        self._packer.restore(state["packer"])
        self._unread = {item.position for item in self._packer.held()}
        self._held = {}
        self._counts = {name: [*state["counts"][name]] for name in COUNTS}
        self._errors = [*state["errors"]]

    def __str__(self) -> str:
        return "PackIterator"


def make_packer(data: DataConfig, queries: int) -> Packer:
    """The packer of a stream. An image costs a quarter of its tokens; every sample that shows one has more."""
    image_cost = (queries + 2) // 4
    return Packer(data.group_rows, data.sequence_length, data.group_images, data.packing_window, image_cost)


def items_of(drawn: DrawnRecord, task: str, position: int = 0) -> list[Item]:
    """The examples of a record as the packer sees them, at a position in their stream: one item, or none."""
    if not drawn.examples:
        return []
    lengths = tuple(len(example.tokens.tokens_L) for example in drawn.examples)
    return [Item(position, task, lengths, len(drawn.examples[0].images))]


def _with_placeholders(drawn: DrawnRecord, item: Item) -> DrawnRecord:
    """The record with empty examples of the right size for samples that can no longer be read."""
    message = drawn.message or f"record {drawn.record_index} has changed since the checkpoint was written"
    examples = list(drawn.examples)
    for number, length in enumerate(item.lengths, start=item.first):
        tokens = Tokens(
            tokens_L=np.zeros(length, np.int32),
            is_target_L=np.zeros(length, bool),
            image_query_L=np.full(length, -1, np.int32),
            image_indices=(),  # other samples of the record may still show them
        )
        name = f"{drawn.source}:{item.position}:{number}"
        empty = Example(drawn.source, name, tokens, (), (), error=message)
        examples += [empty] * (number + 1 - len(examples))
        examples[number] = empty
    return drawn._replace(examples=tuple(examples))
