"""One logical stream of a stage: sampler -> records -> tokens -> packing.

A stage has `config.data.streams` of them, each with an equal part of the rows of every microbatch. A stream depends on
(config.data, tokenizer, records) and its number alone, so it does not matter which process builds it.

Its state names what the packer holds and which samples were drawn ahead by their place in the sources; they are read
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

ALL_DROPPED = 1000  # samples of a source that did not fit, and none that did, before the run is refused
READ_AHEAD = 16  # samples drawn before they are packed; part of what defines a stream whose weights change

# What says that there is no such thing to read, and not that a disk or a server does not answer.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Corpus:
    """The records of a mixture as examples. Reads from several threads at once.

    Args:
      data: the config.
      sources: the records of each entry of `data.mixture`, in order.
      tokenizer: of the run.
      queries: feature slots per image.
    """

    def __init__(self, data: DataConfig, sources: Sequence[Source], tokenizer: Tokenizer, queries: int):
        self.data, self.queries = data, queries
        self.lengths = [len(source) for source in sources]
        self._sources, self._tokenizer = sources, tokenizer

    def read(self, number: int, index: int) -> Example:
        """Reads and tokenises a record.

        Raises:
          UserError: naming source and record, whatever is wrong with it: damaged bytes, no record, content that does
            not fit its task.
          StorageError: if it could not be read, which says nothing about it.
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
        """What of the `facts` is not as it was when a state of the stream was written."""
        if "facts" in state:
            return fingerprint.changes(state["facts"], facts)
        before = fingerprint.before_facts(self.data, self.lengths, self._tokenizer, self.queries)
        return [] if state.get("stream") == before else ["config.data, the number of records or the vocabulary"]


def open_corpus(config: Config, tokenizer: Tokenizer, *, verify: bool = False) -> Corpus:
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
    return Corpus(config.data, open_sources(config.data, verify=verify), tokenizer, config.model.resampler.queries)


class Stream:
    """The endless sequence of groups of rows of one logical stream.

    Args:
      corpus: what to read.
      number: which of the `config.data.streams` this is.
      readers: threads that read ahead.
    """

    def __init__(self, corpus: Corpus, number: int, readers: concurrent.futures.Executor):
        self._corpus, self._number, self._readers = corpus, number, readers
        self._reset()

    def _reset(self) -> None:
        data = self._corpus.data
        self._sampler = Sampler(data.mixture, self._corpus.lengths, data.seed, self._number, data.streams)
        self._packer = Packer(data.group_rows, data.sequence_length, data.group_images, data.packing_window)
        self._ahead: collections.deque[tuple[int, int, concurrent.futures.Future[Example]]] = collections.deque()
        self._held: dict[int, tuple[int, int, Example | None]] = {}
        self._next = 0
        self._step = 0
        self._read, self._dropped, self._unreadable = ([0] * len(data.mixture) for _ in range(3))
        self._errors = [""] * len(data.mixture)

    def next_part(self) -> list[list[list[list[Example]]]]:
        """This stream's part of the next batch: samples by microbatch, group and row."""
        data = self._corpus.data
        groups = data.groups // data.streams
        part = [[self._next_group() for _ in range(groups)] for _ in range(data.accumulation)]
        self._step += 1
        return part

    def _next_group(self) -> list[list[Example]]:
        group = None
        while group is None:
            item = self._next_item()
            if item is not None:
                group = self._packer.add(item)
        return [[self._take(item) for item in row.items] for row in group]

    def _next_item(self) -> Item | None:
        """Reads the next sample drawn; None if it cannot be used."""
        data = self._corpus.data
        while len(self._ahead) <= READ_AHEAD:
            self._submit(*self._sampler.draw(self._step))
        number, index, reading = self._ahead.popleft()
        n = self._next
        self._next += 1
        self._read[number] += 1
        try:
            example = reading.result()
        except UserError as error:
            self._unreadable[number] += 1
            self._errors[number] = self._errors[number] or str(error)
            check_corruption(self._tallies(), data.max_corrupt_share, 1 / data.streams)
            return None
        item = Item(n, data.mixture[number].task, len(example.tokens.tokens_L), len(example.images))
        if not self._packer.fits(item):
            self._dropped[number] += 1
            self._check_fits(example, item)
            return None
        self._held[n] = (number, index, example)
        return item

    def _submit(self, number: int, index: int) -> None:
        self._ahead.append((number, index, self._readers.submit(self._corpus.read, number, index)))

    def _take(self, item: Item) -> Example:
        """The sample of an item, read again if it was held over a restart.

        Its place is given away already, so one that has been damaged since then leaves it empty, as one whose images
        cannot be decoded does.
        """
        number, index, example = self._held.pop(item.n)
        if example is not None:
            return example
        try:
            example = self._corpus.read(number, index)
            if (len(example.tokens.tokens_L), len(example.images)) != (item.length, item.images):
                raise UserError(f"record {example.record_id!r} has changed since the checkpoint was written")
        except UserError as error:
            return _lost(number, item, str(error))
        return example

    def _tallies(self) -> list[Tally]:
        data, lengths = self._corpus.data, self._corpus.lengths
        names = [source.name for source in data.mixture]
        return list(map(Tally, names, lengths, self._read, self._unreadable, self._errors))

    def _check_fits(self, example: Example, item: Item) -> None:
        """A source of which nothing fits is a mistake in the config."""
        number, data = example.source, self._corpus.data
        usable = self._read[number] - self._unreadable[number]
        if self._dropped[number] == usable >= min(self._corpus.lengths[number], ALL_DROPPED):
            raise UserError(
                f"no sample of source {data.mixture[number].name!r} fits a row: {example.record_id!r} has "
                f"{item.length} tokens and {item.images} images for config.data.sequence_length "
                f"{data.sequence_length} and an image budget of {data.group_images}; raise them"
            )

    def errors(self) -> list[str]:
        """By source what was wrong with the first sample that could not be read, '' if all could."""
        return [*self._errors]

    def counts(self) -> dict[str, list[int]]:
        """Samples `read` so far, and those of them left out as `dropped` or `unreadable`, by source."""
        return {"read": [*self._read], "dropped": [*self._dropped], "unreadable": [*self._unreadable]}

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON values."""
        held = [[item.n, *self._held[item.n][:2], item.length, item.images] for item in self._packer.held()]
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
        """Continues after a `state`, bitwise as if never stopped."""
        self._reset()
        self._step, self._next = state["step"], state["next"]
        self._sampler.restore(state["sampler"])
        mixture, items = self._corpus.data.mixture, {}
        for n, number, index, length, images in state["held"]:
            items[n] = Item(n, mixture[number].task, length, images)
            self._held[n] = (number, index, None)
        self._packer.restore(state["packer"], items.__getitem__)
        self._read, self._dropped, self._unreadable = (
            list(state["counts"][kind]) for kind in ("read", "dropped", "unreadable")
        )
        for number, index in state["ahead"]:
            self._submit(number, index)


def _lost(number: int, item: Item, error: str) -> Example:
    """A sample of which only its place is left."""
    zeros_L, none_L = np.zeros(item.length, np.int32), np.full(item.length, -1, np.int32)
    tokens = Tokens(zeros_L, np.zeros(item.length, bool), none_L, tuple(range(item.images)))
    return Example(number, f"{number}:{item.n}", tokens, (b"",) * item.images, (None,) * item.images, error)
