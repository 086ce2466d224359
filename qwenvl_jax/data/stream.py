"""One logical stream of a stage: sampler -> records -> tokens -> packing.

A stage has `config.data.streams` of them, each with an equal part of the rows of every microbatch. A stream depends on
config.data, the tokenizer, the records, the queries per image and its number alone, so it does not matter which process
builds it.

Its state names the samples that the packer holds and those drawn ahead by their index in the sources; they are read
again when they are needed.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.data import fingerprint
from qwenvl_jax.data.corruption import Tally, check_corruption
from qwenvl_jax.data.examples import Example, Tokens, make_example
from qwenvl_jax.data.mixture import Sampler, open_sources
from qwenvl_jax.data.packing import Item, Packer
from qwenvl_jax.data.readers.source import Source
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import StorageError, UserError, one_line

ALL_DROPPED = 1000  # give up after this many dropped samples of a source if none has fitted
READ_AHEAD = 16  # samples drawn before they are packed; if weights change, a part of the stream's definition

# Errors that mean that a file is missing, not that a disk or a server does not answer.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

# This stream's part of a batch is a list of microbatches of groups of rows of examples.
ExamplesOfRow = list[Example]
ExamplesOfGroup = list[ExamplesOfRow]


class ExampleReader:
    """The records of a mixture as examples. Reads from several threads at once.

    Args:
      data: the config.
      sources: the records of each entry of `data.mixture`, in order.
      tokenizer: of the run.
      queries: feature slots per image.
    """

    def __init__(self, data: DataConfig, sources: Sequence[Source], tokenizer: Tokenizer, queries: int):
        self.data = data
        self.queries = queries
        self.lengths = [len(source) for source in sources]
        self._sources = sources
        self._tokenizer = tokenizer

    def read(self, number: int, index: int) -> Example:
        """Reads and tokenises record `index` of source `number`.

        Raises:
          UserError: naming source and record, if the record is damaged or does not fit its task.
          StorageError: if it could not be read although it may be whole.
        """
        where = f"record {index} of source {self.data.mixture[number].name!r}"
        try:
            record = self._sources[number][index]
            return make_example(record, number, self._tokenizer, self.queries)
        except (MemoryError, StorageError):
            raise
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except _ABSENT as error:
            raise UserError(f"{where}: {error}") from None
        except OSError as error:
            raise StorageError(f"{where} could not be read ({error}); run the same command again to continue") from None
        except Exception as error:
            raise UserError(f"{where} is damaged ({type(error).__name__}: {one_line(error)})") from None

    def facts(self) -> dict[str, str]:
        """Everything the batches depend on; see `fingerprint.facts`."""
        return fingerprint.facts(self.data, self._sources, self._tokenizer, self.queries)

    def differences(self, state: dict[str, Any], facts: dict[str, str]) -> list[str]:
        """The names of those `facts` that have changed since a state of the stream was written."""
        if "facts" in state:
            return fingerprint.changes(state["facts"], facts)
        expected = fingerprint.digest_before_facts(self.data, self.lengths, self._tokenizer, self.queries)
        return [] if state.get("stream") == expected else ["config.data, the number of records or the vocabulary"]


def open_examples(config: Config, tokenizer: Tokenizer, *, verify: bool = False) -> ExampleReader:
    """Opens the records of a stage; `verify` as for `source.open_source`.

    Raises:
      UserError: if records are missing or of another task, or the tokenizer does not fit the model's vocabulary.
    """
    rows = config.model.decoder.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer uses {tokenizer.vocab_size} ids, but config.model.decoder.vocab_size is {rows}; choose a "
            "smaller vocabulary or a larger model vocabulary"
        )
    return ExampleReader(
        config.data, open_sources(config.data, verify=verify), tokenizer, config.model.resampler.queries
    )


class Stream:
    """The endless sequence of groups of rows of one logical stream.

    Args:
      examples_reader: what to read.
      number: which of the `config.data.streams` this is.
      readers: threads that read ahead.
    """

    def __init__(self, examples_reader: ExampleReader, number: int, readers: concurrent.futures.Executor):
        self._examples = examples_reader
        self._number = number
        self._readers = readers
        self._reset()

    def _reset(self) -> None:
        data = self._examples.data
        self._sampler = Sampler(data.mixture, self._examples.lengths, data.seed, self._number, data.streams)
        self._packer = Packer(data.group_rows, data.sequence_length, data.group_images, data.packing_window)
        self._ahead: collections.deque[tuple[int, int, concurrent.futures.Future[Example]]] = collections.deque()
        self._held: dict[int, tuple[int, int, Example | None]] = {}
        self._next = 0
        self._step = 0
        self._read = [0] * len(data.mixture)
        self._dropped = [0] * len(data.mixture)
        self._unreadable = [0] * len(data.mixture)
        self._errors = [""] * len(data.mixture)

    def next_part(self) -> list[list[ExamplesOfGroup]]:
        """This stream's part of the next batch."""
        data = self._examples.data
        groups = data.groups // data.streams
        part = [[self._next_group() for _ in range(groups)] for _ in range(data.accumulation)]
        self._step += 1
        return part

    def _next_group(self) -> ExamplesOfGroup:
        group = None
        while group is None:
            item = self._next_item()
            if item is not None:
                group = self._packer.add(item)
        return [[self._take(item) for item in row.items] for row in group]

    def _next_item(self) -> Item | None:
        """The next drawn sample, as the packer sees it; None if it cannot be used."""
        data = self._examples.data
        while len(self._ahead) <= READ_AHEAD:
            self._submit(*self._sampler.draw(self._step))
        number, index, reading = self._ahead.popleft()
        position = self._next
        self._next += 1
        self._read[number] += 1
        try:
            example = reading.result()
        except UserError as error:
            self._unreadable[number] += 1
            self._errors[number] = self._errors[number] or str(error)
            check_corruption(self._tallies(), data.max_corrupt_share, 1 / data.streams)
            return None
        item = item_of(example, data, position)
        if not self._packer.fits(item):
            self._dropped[number] += 1
            self._check_fits(example, item)
            return None
        self._held[position] = (number, index, example)
        return item

    def _submit(self, number: int, index: int) -> None:
        self._ahead.append((number, index, self._readers.submit(self._examples.read, number, index)))

    def _take(self, item: Item) -> Example:
        """The example of an item, read again if it was held over a restart.

        Its tokens are already reserved in a row. If the record has been damaged since then, they stay empty, as they do
        if its images cannot be decoded.
        """
        number, index, example = self._held.pop(item.position)
        if example is not None:
            return example
        try:
            example = self._examples.read(number, index)
            if (len(example.tokens.tokens_L), len(example.images)) != (item.length, item.images):
                raise UserError(f"record {example.record_id!r} has changed since the checkpoint was written")
        except UserError as error:
            return _placeholder(number, item, str(error))
        return example

    def _tallies(self) -> list[Tally]:
        data = self._examples.data
        lengths = self._examples.lengths
        names = [source.name for source in data.mixture]
        return list(map(Tally, names, lengths, self._read, self._unreadable, self._errors))

    def _check_fits(self, example: Example, item: Item) -> None:
        """Raises UserError if no sample of a source fits, which is a mistake in the config."""
        number = example.source
        data = self._examples.data
        usable = self._read[number] - self._unreadable[number]
        if self._dropped[number] == usable >= min(self._examples.lengths[number], ALL_DROPPED):
            raise UserError(
                f"no sample of source {data.mixture[number].name!r} fits a row: {example.record_id!r} has "
                f"{item.length} tokens and {item.images} images for config.data.sequence_length "
                f"{data.sequence_length} and an image budget of {data.group_images}; raise them"
            )

    def errors(self) -> list[str]:
        """For every source, the error of the first sample that could not be read; "" if all could be read."""
        return [*self._errors]

    def counts(self) -> dict[str, list[int]]:
        """By source: samples `read` so far, and how many of them were `dropped` or `unreadable`."""
        return {"read": [*self._read], "dropped": [*self._dropped], "unreadable": [*self._unreadable]}

    def state(self) -> dict[str, Any]:
        """The position of the stream, as JSON values."""
        held = [
            [item.position, *self._held[item.position][:2], item.length, item.images] for item in self._packer.held()
        ]
        return {
            "step": self._step,
            "next": self._next,
            "sampler": self._sampler.state(),
            "ahead": [[number, index] for number, index, _ in self._ahead],
            "held": held,
            "packer": self._packer.state(),
            "counts": self.counts(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues after a `state`; what follows is bitwise the same as without a stop."""
        self._reset()
        self._step = state["step"]
        self._next = state["next"]
        self._sampler.restore(state["sampler"])
        mixture = self._examples.data.mixture
        items = {}
        for position, number, index, length, images in state["held"]:
            items[position] = Item(position, mixture[number].task, length, images)
            self._held[position] = (number, index, None)
        self._packer.restore(state["packer"], items.__getitem__)
        self._read = list(state["counts"]["read"])
        self._dropped = list(state["counts"]["dropped"])
        self._unreadable = list(state["counts"]["unreadable"])
        for number, index in state["ahead"]:
            self._submit(number, index)


def item_of(example: Example, data: DataConfig, position: int = 0) -> Item:
    """An example as the packer sees it, at a position in its stream."""
    return Item(position, data.mixture[example.source].task, len(example.tokens.tokens_L), len(example.images))


def _placeholder(number: int, item: Item, error: str) -> Example:
    """An example of the right size for a sample that can no longer be read."""
    tokens = Tokens(
        tokens_L=np.zeros(item.length, np.int32),
        is_target_L=np.zeros(item.length, bool),
        image_query_L=np.full(item.length, -1, np.int32),
        image_indices=tuple(range(item.images)),
    )
    no_sizes = (None,) * item.images
    return Example(number, f"{number}:{item.position}", tokens, (b"",) * item.images, no_sizes, error)
