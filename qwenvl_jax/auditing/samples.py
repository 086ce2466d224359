"""The first samples that a stage would read: drawn as training draws them, counted and decoded. No device is touched.

Shape suffixes: L tokens, I images, H/W pixels.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from qwenvl_jax.config import Config, DataConfig, config_hash
from qwenvl_jax.data import tags
from qwenvl_jax.data.examples import Example, Tokens
from qwenvl_jax.data.images.pool import decode_all
from qwenvl_jax.data.mixture import Sampler
from qwenvl_jax.data.packing import Item, Packer
from qwenvl_jax.data.readers.conversations import is_placeholder
from qwenvl_jax.data.stream import READ_AHEAD, Corpus, open_corpus
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.runtime.errors import UserError

NAMED = 5  # samples left out that are named, per source and reason
BINS = 24  # of a histogram, at most
QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

_POINTS = {tags.BOX: 2, tags.QUAD: 4}
_CLOSING = {tags.BOX: tags.BOX_END, tags.QUAD: tags.QUAD_END}

State = Literal["used", "dropped", "corrupt"]


class Finding(NamedTuple):
    """One sample as it was drawn.

    Attributes:
      source, record: its number in the mixture, and the record's place in that source.
      state: "used", "dropped" (does not fit a row) or "corrupt" (the record or an image cannot be read).
      message: why it is not used.
      example: None if the record cannot be read.
    """

    source: int
    record: int
    state: State
    message: str
    example: Example | None


class Span(NamedTuple):
    """Neighbouring tokens of one kind: text, one special token, or the feature places of one image.

    `supervised` says whether they are predicted with loss; the first token of a sample never is. `image` counts the
    sample's images from 0; -1 if the span is none.
    """

    kind: Literal["text", "special", "image"]
    text: str
    tokens: int
    supervised: bool
    image: int = -1


class Place(NamedTuple):
    """A box or quadrilateral as the tokens spell it.

    Attributes:
      span: number of the span that opens it.
      images: those shown before it, the latest last. Of several the text alone does not say which one is meant.
      corners: (x, y) in thousandths, as written: two of a box, four of a quadrilateral; none if they cannot be read.
      supervised: whether the model is taught to write it.
    """

    span: int
    images: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]
    supervised: bool

    @property
    def polygon(self) -> tuple[tuple[int, int], ...]:
        """The corners of the outline; of a box all four."""
        if len(self.corners) != 2:
            return self.corners
        (x1, y1), (x2, y2) = self.corners
        return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))

    @property
    def empty(self) -> bool:
        """Whether it surrounds nothing: no area, the corners of a box in the wrong order, or not to be read."""
        if len(self.corners) == 2:
            (x1, y1), (x2, y2) = self.corners
            return x1 >= x2 or y1 >= y2
        following = (*self.corners[1:], *self.corners[:1])
        return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(self.corners, following, strict=True)) == 0


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
      numbers: of the sources and in all, as JSON values.
      examples: the first samples of every source that training would use.
      tokenizer: of the stage.
    """

    numbers: dict[str, Any]
    examples: list[list[Example]]
    tokenizer: Tokenizer


class _Count(NamedTuple):
    """What is kept of one sample."""

    state: State
    length: int
    targets: int
    images: int
    places: int
    empty: int


def audit(config: Config, samples: int, shown: int, *, verify: bool = False) -> Audit:
    """Reads the first samples of a stage.

    Args:
      config: of the stage.
      samples: how many, of all its logical streams in turn.
      shown: examples of every source to keep.
      verify: as for `source.open_source`.

    Raises:
      UserError: if the records or the vocabulary cannot be opened, or do not fit the config.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    corpus = open_corpus(config, tokenizer, verify=verify)
    queries, mixture = corpus.queries, config.data.mixture
    counts: list[list[_Count]] = [[] for _ in mixture]
    examples: list[list[Example]] = [[] for _ in mixture]
    left_out: list[list[dict[str, Any]]] = [[] for _ in mixture]
    with contextlib.closing(draw(corpus)) as drawn:
        for source, record, state, message, example in itertools.islice(drawn, samples):
            counts[source].append(_count(state, example, tokenizer, queries))
            if state == "used" and example is not None and len(examples[source]) < shown:
                examples[source].append(example)
            entry = {"state": state, "record": record, "message": message}
            known = left_out[source]
            if state != "used" and entry not in known and sum(e["state"] == state for e in known) < NAMED:
                known.append(entry)
    numbers: dict[str, Any] = {
        "config": config_hash(config),
        "model": config.model.name,
        "stage": config.train.stage,
        "streams": config.data.streams,
        "image_size": config.data.image_size,
        "sequence_length": config.data.sequence_length,
        "images_of_a_group": config.data.group_images,
        "queries": queries,
        "total": _numbers(list(itertools.chain(*counts)), config.data),
    }
    supervised = max(1, numbers["total"]["supervised"])
    numbers["sources"] = [
        {"name": source.name, "task": source.task, "path": source.records, "records": length}
        | (own := _numbers(counts[number], config.data))
        | {"share": len(counts[number]) / samples, "loss_share": own["supervised"] / supervised}
        | {"left_out": sorted(left_out[number], key=lambda entry: entry["state"])}
        for number, (source, length) in enumerate(zip(mixture, corpus.lengths, strict=True))
    ]
    numbers["notes"] = _notes(numbers, config.data)
    return Audit(numbers, examples, tokenizer)


def draw(corpus: Corpus) -> Generator[Finding, None, None]:
    """The samples of all logical streams in turn, one of each, without end."""
    threads = min(16, 4 * (os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(threads, "read") as readers:
        streams = [_draw_stream(corpus, number, readers) for number in range(corpus.data.streams)]
        try:
            while True:
                yield from map(next, streams)
        finally:
            readers.shutdown(cancel_futures=True)


def _draw_stream(corpus: Corpus, number: int, readers: concurrent.futures.Executor) -> Iterator[Finding]:
    """The samples of one logical stream in the order in which `stream.Stream` reads them.

    They are packed, and the rows thrown away: at which step a sample is drawn decides about weights that change.
    """
    data = corpus.data
    sampler = Sampler(data.mixture, corpus.lengths, data.seed, number, data.streams)
    packer = Packer(data.group_rows, data.sequence_length, data.group_images, data.packing_window)
    groups_per_step = data.accumulation * data.groups // data.streams
    ahead: collections.deque[concurrent.futures.Future[Finding]] = collections.deque()
    groups = 0
    for n in itertools.count():
        while len(ahead) <= READ_AHEAD:
            source, index = sampler.draw(groups // groups_per_step)
            ahead.append(readers.submit(_look, corpus, packer.fits, source, index))
        finding = ahead.popleft().result()
        if finding.example is not None and finding.state != "dropped":  # a broken image keeps its place in a row
            groups += packer.add(_item(finding.example, data, n)) is not None
        yield finding


def _item(example: Example, data: DataConfig, n: int = 0) -> Item:
    return Item(n, data.mixture[example.source].task, len(example.tokens.tokens_L), len(example.images))


def _look(corpus: Corpus, fits: Callable[[Item], bool], source: int, index: int) -> Finding:
    """Reads a sample as training does, and decodes its images to see whether that is possible."""
    data = corpus.data
    try:
        example = corpus.read(source, index)
    except UserError as error:
        return Finding(source, index, "corrupt", str(error), None)
    item = _item(example, data)
    if not fits(item):
        found, room = f"{item.length} tokens", f"a row {data.sequence_length}"
        if item.length <= data.sequence_length:
            found, room = f"{item.images} images", f"a group of rows {data.group_images}"
        return Finding(source, index, "dropped", f"record {example.record_id!r}: it has {found}, {room}", example)
    wrong = decode_all(example.images, example.stated_sizes, pixels_of(example, data), data.jpeg_draft)
    if wrong:
        return Finding(source, index, "corrupt", f"record {example.record_id!r}: {wrong}", example)
    return Finding(source, index, "used", "", example)


def pixels_of(example: Example, data: DataConfig) -> np.ndarray:
    """Room for a sample's images, [I, H, W, 3] uint8."""
    return np.zeros((len(example.images), data.image_size, data.image_size, 3), np.uint8)


def spans_of(tokens: Tokens, tokenizer: Tokenizer, queries: int) -> list[Span]:
    """The tokens of a sample as text. Where loss begins inside a character, that character counts as supervised."""
    ids_L, query_L = tokens.tokens_L, tokens.image_query_L
    supervised_L = tokens.is_target_L.copy()
    supervised_L[:1] = False  # nothing comes before it that could predict it
    image_L = np.where(query_L < 0, -1, query_L // queries)
    # What a token has in common with its neighbours in a span; special tokens stand alone.
    alone_L = np.where((ids_L >= tokenizer.special.first) & (image_L < 0), np.arange(len(ids_L)), -1)
    found: list[Span] = []
    for start, stop in _runs(image_L, alone_L):
        if image_L[start] >= 0:
            image = int(image_L[start])
            found.append(Span("image", f"image {image + 1}", stop - start, bool(supervised_L[start]), image))
        elif alone_L[start] >= 0:
            name = tokenizer.decode(ids_L[start:stop])
            found.append(Span("special", name, 1, bool(supervised_L[start])))
        else:
            text, done = tokenizer.decode(ids_L[start:stop]), 0
            for a, b in _runs(supervised_L[start:stop]):
                until = len(text)
                if b < stop - start:
                    until = len(tokenizer.decode(ids_L[start : start + b]).rstrip("\ufffd"))
                found.append(Span("text", text[done:until], b - a, bool(supervised_L[start + a])))
                done = until
    return found


def _runs(*keys_L: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of the stretches over which all keys stay the same."""
    changes: set[int] = {0, len(keys_L[0])}
    for key_L in keys_L:
        changes.update((np.flatnonzero(key_L[1:] != key_L[:-1]) + 1).tolist())
    return list(itertools.pairwise(sorted(changes)))


def places_of(spans: Sequence[Span]) -> list[Place]:
    """The boxes and quadrilaterals that special tokens enclose, in order."""
    found: list[Place] = []
    images: dict[int, None] = {}
    for number, span in enumerate(spans):
        if span.kind == "image":
            images.pop(span.image, None)  # shown again, it is the latest
            images[span.image] = None
        if span.kind != "special" or span.text not in _POINTS:
            continue
        inner = [*itertools.takewhile(lambda other: other.kind == "text", spans[number + 1 :])]
        end = number + 1 + len(inner)
        closed = end < len(spans) and spans[end].text == _CLOSING[span.text]
        text, count = "".join(part.text for part in inner), _POINTS[span.text]
        values = (tags.read_points(text, count) if closed else None) or []
        if not span.supervised and is_placeholder(text):
            continue  # the user only speaks of one
        corners = tuple(zip(values[::2], values[1::2], strict=True))
        found.append(Place(number, tuple(images), corners, span.supervised))
    return found


def _count(state: State, example: Example | None, tokenizer: Tokenizer, queries: int) -> _Count:
    if example is None:
        return _Count(state, 0, 0, 0, 0, 0)
    places = places_of(spans_of(example.tokens, tokenizer, queries))
    return _Count(
        state,
        len(example.tokens.tokens_L),
        int(example.tokens.is_target_L[1:].sum()),
        len(example.images),
        len(places),
        sum(place.empty for place in places),
    )


def _numbers(counts: Sequence[_Count], data: DataConfig) -> dict[str, Any]:
    """Sums over the samples used; lengths and images per sample also over the dropped ones."""
    used = [count for count in counts if count.state == "used"]
    dropped = [count for count in counts if count.state == "dropped"]
    lengths = sorted(count.length for count in (*used, *dropped))
    tokens, supervised = sum(count.length for count in used), sum(count.targets for count in used)
    return {
        "samples": len(counts),
        "used": len(used),
        "dropped": len(dropped),
        "corrupt": len(counts) - len(used) - len(dropped),
        "tokens": tokens,
        "supervised": supervised,
        "supervised_share": supervised / max(1, tokens),
        "images": sum(count.images for count in used),
        "places": sum(count.places for count in used),
        "empty_places": sum(count.empty for count in used),
        "length": {
            name: int(np.quantile(lengths, share, method="inverted_cdf")) if lengths else None
            for name, share in QUANTILES.items()
        },
        "length_histogram": _histogram([c.length for c in used], [c.length for c in dropped], data.sequence_length),
        "image_histogram": _histogram([c.images for c in used], [c.images for c in dropped], data.group_images),
    }


def _histogram(used: Sequence[int], dropped: Sequence[int], limit: int) -> list[dict[str, int]]:
    """Bars of a round width from 0 up to the limit, and one for all that is above it.

    Returns:
      `first` and `last` value of every bar, how many `samples` it has, and how many of those are `dropped`.
    """
    values = [*used, *dropped]
    inside = max((value for value in values if value <= limit), default=0)
    width = next(m * 10**p for p in itertools.count() for m in (1, 2, 5) if inside < BINS * m * 10**p)
    bars = [(first, min(first + width - 1, limit)) for first in range(0, inside + 1, width)]
    if values and max(values) > limit:
        bars.append((limit + 1, max(values)))
    return [
        {"first": first, "last": last}
        | {name: sum(first <= v <= last for v in own) for name, own in (("samples", values), ("dropped", dropped))}
        for first, last in bars
    ]


def _notes(numbers: dict[str, Any], data: DataConfig) -> list[str]:
    """What a reader must not overlook, above all what would end the run."""
    notes = []
    total, sources = numbers["total"], numbers["sources"]
    bad = [("", total)] if total["corrupt"] > data.max_corrupt_share * total["samples"] else [
        (f" of source {source.name!r}", own)
        for own, source in zip(sources, data.mixture, strict=True)
        if own["corrupt"] > data.max_corrupt_share * own["samples"]
    ]  # fmt: skip
    for whose, own in bad:
        notes.append(
            f"{own['corrupt']} of {own['samples']} samples{whose} are corrupt, above config.data.max_corrupt_share "
            f"{data.max_corrupt_share:g}; a run ends over such a share"
        )
    for own, source in zip(sources, data.mixture, strict=True):
        if not own["samples"]:
            notes.append(f"no sample of source {source.name!r} was drawn; audit more of them")
        elif own["dropped"] and not own["used"]:
            notes.append(f"no sample of source {source.name!r} fits a row: {own['left_out'][-1]['message']}")
        elif not own["supervised"]:
            notes.append(f"source {source.name!r} has no supervised token")
        if own["empty_places"]:
            notes.append(f"{own['empty_places']} of {own['places']} places of source {source.name!r} surround nothing")
        if source.schedule:
            notes.append(
                f"the weight of source {source.name!r} changes with the step; these samples show the beginning"
            )
    return notes
