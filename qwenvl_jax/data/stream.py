"""One logical stream of a stage: sampler -> records -> tokens -> packing.

A stage has `config.data.streams` of them, each with an equal part of the rows of every microbatch. A stream depends on
(config.data, tokenizer, records) and its number alone, so it does not matter which process builds it.

Its state names what the packer holds and which samples were drawn ahead by their place in the sources; they are read
again when they are needed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwenvl_jax.config import Config, DataConfig, to_dict
from qwenvl_jax.data.examples import Tokens, tokenize_pieces
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.mixture import Sampler, open_sources
from qwenvl_jax.data.packing import Item, Packer
from qwenvl_jax.data.sources import Source
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError

ALL_DROPPED = 1000  # samples of a source that did not fit, and none that did, before the run is refused
READ_AHEAD = 16  # samples drawn before they are packed; part of what defines a stream whose weights change
HOST_SETTINGS = ("decode_workers", "max_corrupt_share")  # of config.data; a stream does not depend on them


def check_corruption(corrupt: int, read: int, share: float, error: str) -> None:
    """Raises UserError if samples that cannot be read are more than the configured share.

    Early on chance weighs much: four standard deviations and three samples above the share are let pass.

    Args:
      corrupt, read: samples so far.
      share: `config.data.max_corrupt_share`.
      error: what is wrong with one of them.
    """
    expected = share * read
    if corrupt > expected + (4 * math.sqrt(expected) + 3 if share else 0):
        raise UserError(
            f"{corrupt} of {read} samples read so far are corrupt, among them this one: {error}; mend or remove them, "
            f"or raise config.data.max_corrupt_share above {share:g}"
        )


class Sample(NamedTuple):
    """A tokenised sample; `source` is its number in the mixture. Images stay encoded until they are placed."""

    source: int
    name: str
    tokens: Tokens
    images: tuple[bytes, ...]


class Corpus:
    """The records of a mixture as samples. Reads from several threads at once.

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

    def read(self, number: int, index: int) -> Sample:
        """Reads and tokenises a record.

        Raises:
          UserError: if it is no record or its content does not fit its task.
        """
        record = self._sources[number][index]
        tokens = tokenize_pieces(training_pieces(record), self._tokenizer, self.queries)
        return Sample(number, record.id, tokens, tuple(record.images[k] for k in tokens.image_indices))

    def fingerprint(self) -> str:
        """Twelve hex digits of everything the batches depend on; the records' folder may move."""
        values = {key: value for key, value in to_dict(self.data).items() if key not in HOST_SETTINGS}
        for source, length in zip(values["mixture"], self.lengths, strict=True):
            del source["records"]
            source["length"] = length
        probe = self._tokenizer.encode("A dog, 12 birds\n一只猫 été")
        text = json.dumps([values, self.queries, self._tokenizer.vocab_size, probe], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_corpus(config: Config, tokenizer: Tokenizer, *, verify: bool = False) -> Corpus:
    """Opens the records of a stage; `verify` as for `sources.open_source`.

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
        self._ahead: collections.deque[tuple[int, int, concurrent.futures.Future[Sample]]] = collections.deque()
        self._held: dict[int, tuple[int, int, Sample | None]] = {}
        self._next = 0
        self._step = 0
        self._read, self._dropped, self._unreadable = ([0] * len(data.mixture) for _ in range(3))

    def next_part(self) -> list[list[list[list[Sample]]]]:
        """This stream's part of the next batch: samples by microbatch, group and row."""
        data = self._corpus.data
        groups = data.groups // data.streams
        part = [[self._next_group() for _ in range(groups)] for _ in range(data.accumulation)]
        self._step += 1
        return part

    def _next_group(self) -> list[list[Sample]]:
        group = None
        while group is None:
            item = self._next_item()
            if item is not None:
                group = self._packer.add(item)
        return [[self._take(item.n) for item in row.items] for row in group]

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
            sample = reading.result()
        except UserError as error:
            self._unreadable[number] += 1
            check_corruption(sum(self._unreadable), sum(self._read), data.max_corrupt_share, str(error))
            return None
        item = Item(n, data.mixture[number].task, len(sample.tokens.tokens_L), len(sample.images))
        if not self._packer.fits(item):
            self._dropped[number] += 1
            self._check_fits(sample, item)
            return None
        self._held[n] = (number, index, sample)
        return item

    def _submit(self, number: int, index: int) -> None:
        self._ahead.append((number, index, self._readers.submit(self._corpus.read, number, index)))

    def _take(self, n: int) -> Sample:
        number, index, sample = self._held.pop(n)
        return sample or self._corpus.read(number, index)

    def _check_fits(self, sample: Sample, item: Item) -> None:
        """A source of which nothing fits is a mistake in the config."""
        number, data = sample.source, self._corpus.data
        usable = self._read[number] - self._unreadable[number]
        if self._dropped[number] == usable >= min(self._corpus.lengths[number], ALL_DROPPED):
            raise UserError(
                f"no sample of source {data.mixture[number].name!r} fits a row: {sample.name!r} has {item.length} "
                f"tokens and {item.images} images for config.data.sequence_length {data.sequence_length} and an image "
                f"budget of {data.group_images}; raise them"
            )

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
