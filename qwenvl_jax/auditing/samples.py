"""The first samples that a stage would read, drawn as training draws them, counted and decoded. No device is used.

Shape suffixes: L tokens, I images, H/W pixels.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from qwenvl_jax.auditing.packing_preview import PackingPreview
from qwenvl_jax.auditing.spans import regions_of, spans_of
from qwenvl_jax.config import Config, DataConfig, config_hash
from qwenvl_jax.data.examples import DrawnRecord, Example
from qwenvl_jax.data.images.pool import decode_all
from qwenvl_jax.data.mixture_reader import MixtureReader, open_mixture
from qwenvl_jax.data.passes import expected_passes, many_passes, rows_of_one_pass
from qwenvl_jax.data.pipeline import drawn_records
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer

NAMED = 5  # how many samples left out are named, per source and reason
BINS = 24  # the most bars of a histogram
QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

State = Literal["used", "cut", "dropped", "filtered", "corrupt"]


class Finding(NamedTuple):
    """One drawn sample, or a fragment of a text that is longer than a row.

    Attributes:
      source: index of its source in the mixture.
      record: index of its record in that source.
      state: "used", "cut" (used, but not as a whole), "dropped" (it does not fit a row), "filtered" (a transformation
        removes it) or "corrupt" (the record or an image cannot be read).
      message: why it is not used.
      example: None if the record cannot be read or is filtered.
    """

    source: int
    record: int
    state: State
    message: str
    example: Example | None


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
      numbers: of every source and in total, as JSON values.
      examples: the first examples of every source that training would use.
      tokenizer: of the stage.
    """

    numbers: dict[str, Any]
    examples: list[list[Example]]
    tokenizer: Tokenizer


class _Count(NamedTuple):
    """The numbers of one sample."""

    state: State
    begins: bool = True
    length: int = 0
    targets: int = 0
    images: int = 0
    regions: int = 0
    empty_regions: int = 0


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
    reader = open_mixture(config, tokenizer, verify=verify)
    mixture = config.data.mixture
    counts: list[list[_Count]] = [[] for _ in mixture]
    examples: list[list[Example]] = [[] for _ in mixture]
    left_out: list[list[dict[str, Any]]] = [[] for _ in mixture]
    preview = PackingPreview(config.data, reader.queries)
    with contextlib.closing(draw(reader, preview)) as drawn:
        for finding in itertools.islice(itertools.chain.from_iterable(drawn), samples):
            counts[finding.source].append(_count(finding, tokenizer, reader.queries))
            if finding.state not in ("used", "cut"):
                _name(finding, left_out[finding.source])
            elif finding.example is not None and len(examples[finding.source]) < shown:
                examples[finding.source].append(finding.example)
    total = _numbers(list(itertools.chain(*counts)), config.data)
    sources = []
    for index, source in enumerate(mixture):
        numbers_of_source = _numbers(counts[index], config.data)
        sources.append(
            {
                "name": source.name,
                "task": source.task,
                "path": source.records,
                "records": reader.records[index],
                "samples_in_all": reader.samples[index],
                **numbers_of_source,
                "share": numbers_of_source["samples"] / max(1, total["samples"]),
                "loss_share": numbers_of_source["supervised"] / max(1, total["supervised"]),
                "left_out": sorted(left_out[index], key=lambda entry: entry["state"]),
            }
        )
    passes = _passes(config, preview.numbers(), reader)
    numbers = {
        "config": config_hash(config),
        "model": config.model.name,
        "stage": config.train.stage,
        "streams": config.data.streams,
        "image_size": config.data.image_size,
        "sequence_length": config.data.sequence_length,
        "images_of_a_group": config.data.group_images,
        "queries": reader.queries,
        "packing": preview.numbers(),
        "passes": passes,
        "total": total,
        "sources": sources,
        "notes": [*_notes(total, sources, config.data), *preview.notes(), *_notes_on_passes(config, passes)],
    }
    return Audit(numbers, examples, tokenizer)


def _name(finding: Finding, left_out: list[dict[str, Any]]) -> None:
    """Adds a sample that is not used to the named ones of its source, each once, up to NAMED of every state."""
    entry = {"state": finding.state, "record": finding.record, "message": finding.message}
    same_state = [named for named in left_out if named["state"] == finding.state]
    if entry not in same_state and len(same_state) < NAMED:
        left_out.append(entry)


def draw(reader: MixtureReader, preview: PackingPreview) -> Generator[list[Finding], None, None]:
    """The samples of every record that all logical streams draw, one record of each stream in turn, without end.

    Args:
      reader: of the mixture.
      preview: packs the samples.
    """
    streams = [drawn_records(reader, stream) for stream in range(reader.data.streams)]

    def look(number: int) -> tuple[DrawnRecord, list[Finding]]:
        position, stream = divmod(number, len(streams))
        drawn = streams[stream][position]
        return drawn, findings_of(drawn, reader.data)

    threads = min(16, 4 * (os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(threads, "read") as readers:
        numbers = itertools.count()
        ahead = collections.deque(readers.submit(look, number) for number in itertools.islice(numbers, 2 * threads))
        try:
            while True:
                ahead.append(readers.submit(look, next(numbers)))
                drawn, findings = ahead.popleft().result()
                preview.add(drawn)
                yield findings
        finally:
            readers.shutdown(cancel_futures=True)


def findings_of(drawn: DrawnRecord, data: DataConfig) -> list[Finding]:
    """The samples of a record as training sees them; their images are decoded to see whether that is possible."""

    def finding(state: State, message: str = "", example: Example | None = None) -> Finding:
        return Finding(drawn.source, drawn.record_index, state, message, example)

    if drawn.unreadable:
        return [finding("corrupt", drawn.message)]
    if drawn.filtered:
        return [finding("filtered", "a transformation removes it")]
    findings = [finding("dropped", drawn.message, example) for example in drawn.dropped]
    image_error = ""
    if drawn.examples:
        first = drawn.examples[0]  # all show the same images
        image_error = decode_all(first.images, first.stated_sizes, pixels_of(first, data), data.image_decoder)
    for example in drawn.examples:
        if image_error:
            findings.append(finding("corrupt", f"record {example.record_id!r}: {image_error}", example))
        else:
            findings.append(finding("used" if example.fragment < 0 else "cut", "", example))
    return findings


def pixels_of(example: Example, data: DataConfig) -> np.ndarray:
    """An array of zeros for the images of an example, [I, H, W, 3] uint8."""
    return np.zeros((len(example.images), data.image_size, data.image_size, 3), np.uint8)


def _count(finding: Finding, tokenizer: Tokenizer, queries: int) -> _Count:
    example = finding.example
    if example is None:
        return _Count(finding.state)
    regions = regions_of(spans_of(example.tokens, tokenizer, queries))
    return _Count(
        state=finding.state,
        begins=example.begins,
        length=len(example.tokens.tokens_L),
        targets=int(example.tokens.is_target_L[1:].sum()),
        images=len(example.images),
        regions=len(regions),
        empty_regions=sum(region.empty for region in regions),
    )


def _numbers(counts: Sequence[_Count], data: DataConfig) -> dict[str, Any]:
    """Sums over the used samples. Lengths and images are those of rows: a text that is cut has several fragments."""
    used = [count for count in counts if count.state in ("used", "cut")]
    dropped = [count for count in counts if count.state == "dropped"]
    lengths = sorted(count.length for count in (*used, *dropped))
    tokens = sum(count.length for count in used)
    supervised = sum(count.targets for count in used)
    samples = collections.Counter(count.state for count in counts if count.begins)
    return {
        "samples": samples.total(),
        "used": samples["used"] + samples["cut"],
        **{state: samples[state] for state in ("cut", "dropped", "filtered", "corrupt")},
        "tokens": tokens,
        "supervised": supervised,
        "supervised_share": supervised / max(1, tokens),
        "images": sum(count.images for count in used),
        "regions": sum(count.regions for count in used),
        "empty_regions": sum(count.empty_regions for count in used),
        "length": {
            name: int(np.quantile(lengths, share, method="inverted_cdf")) if lengths else None
            for name, share in QUANTILES.items()
        },
        "length_histogram": _histogram([c.length for c in used], [c.length for c in dropped], data.sequence_length),
        "image_histogram": _histogram([c.images for c in used], [c.images for c in dropped], data.group_images),
    }


def _histogram(used: Sequence[int], dropped: Sequence[int], limit: int) -> list[dict[str, int]]:
    """Bars of a round width from 0 to the limit, and one bar for everything above.

    Returns:
      `first` and `last` value of every bar, how many `samples` it has, and how many of those are `dropped`.
    """
    values = [*used, *dropped]
    highest = max((value for value in values if value <= limit), default=0)
    width = _bar_width(highest)
    bars = [(first, min(first + width - 1, limit)) for first in range(0, highest + 1, width)]
    if values and max(values) > limit:
        bars.append((limit + 1, max(values)))

    def within(numbers: Sequence[int], first: int, last: int) -> int:
        return sum(first <= number <= last for number in numbers)

    return [
        {
            "first": first,
            "last": last,
            "samples": within(values, first, last),
            "dropped": within(dropped, first, last),
        }
        for first, last in bars
    ]


def _bar_width(highest: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, .. with which BINS bars reach beyond the highest value."""
    power = 1
    while True:
        for width in (power, 2 * power, 5 * power):
            if highest < BINS * width:
                return width
        power *= 10


def _notes(total: dict[str, Any], sources: Sequence[dict[str, Any]], data: DataConfig) -> list[str]:
    """Sentences that a reader must not overlook, first about what would end the run."""
    notes = []
    if _too_corrupt(total, data):
        notes.append(_corrupt_note(total, "", data))
    else:
        for numbers in sources:
            if _too_corrupt(numbers, data):
                notes.append(_corrupt_note(numbers, f" of source {numbers['name']!r}", data))
    for numbers, source in zip(sources, data.mixture, strict=True):
        name = source.name
        if not numbers["samples"]:
            notes.append(f"no sample of source {name!r} was drawn; audit more of them")
        elif numbers["filtered"] == numbers["samples"]:
            notes.append(f"config.data.transformations removes every record of source {name!r} that was drawn")
        elif numbers["dropped"] and not numbers["used"]:
            notes.append(f"no sample of source {name!r} fits a row: {numbers['left_out'][-1]['message']}")
        elif not numbers["supervised"]:
            notes.append(f"source {name!r} has no supervised token")
        if numbers["empty_regions"]:
            of_all = f"{numbers['empty_regions']} of {numbers['regions']} regions"
            notes.append(f"{of_all} of source {name!r} surround nothing")
        if source.schedule:
            notes.append(f"the weight of source {name!r} changes with time; these samples show the beginning")
    return notes


def _passes(config: Config, packing: dict[str, Any] | None, reader: MixtureReader) -> dict[str, Any] | None:
    """Passes over every source and over all in the steps of the stage, and the rows per step that make one pass."""
    if packing is None:
        return None
    full = packing["rows"] / (packing["rows"] + packing["empty_rows"])
    samples_per_row = packing["samples_per_row"] * full
    samples = {source.name: count for source, count in zip(config.data.mixture, reader.samples, strict=True)}
    expected = expected_passes(config, samples_per_row, samples)
    return {
        "steps": config.train.steps,
        "rows_per_step": config.data.rows_per_step,
        "samples_per_row": samples_per_row,
        "rows_per_step_of_one_pass": rows_of_one_pass(config, samples_per_row, samples),
        "sources": {name: {"samples": round(one.drawn), "passes": one.passes} for name, one in expected.items()},
        "warning": many_passes(expected),
    }


def _notes_on_passes(config: Config, passes: dict[str, Any] | None) -> list[str]:
    if passes is None or not passes["warning"]:
        return []
    one_pass = passes["rows_per_step_of_one_pass"]
    return [f"{passes['warning']} (about {one_pass:,} rows per step make one pass in {config.train.steps:,} steps)"]


def _too_corrupt(numbers: dict[str, Any], data: DataConfig) -> bool:
    return numbers["corrupt"] > data.max_corrupt_share * numbers["samples"]


def _corrupt_note(numbers: dict[str, Any], of_source: str, data: DataConfig) -> str:
    return (
        f"{numbers['corrupt']} of {numbers['samples']} samples{of_source} are corrupt, above "
        f"config.data.max_corrupt_share {data.max_corrupt_share:g}; a run ends over such a share"
    )
