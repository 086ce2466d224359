"""Histograms of the texts and pictures of every task."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from data_pipelines.report.counts import tasks_of
from qwenvl_jax.data.evaluation_content import single_contents
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.tasks import RECORD_TASKS
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.html.charts import Bar, histogram
from qwenvl_jax.html.page import card, grid, section

RECORDS_TOKENISED = 20_000
_OF_TEXTS = {"characters": "characters per sample", "samples": "samples per record with pictures"}
_OF_PICTURES = {
    "width": "width of pictures, px",
    "height": "height of pictures, px",
    "aspect": "width : height of pictures",
    "bytes": "bytes per picture",
}
_TOKEN_EDGES = sorted({0, 1} | {2**power for power in range(1, 18)} | {3 * 2**power for power in range(16)})
_NO_LIMIT = 1 << 62


class TokenCounts(NamedTuple):
    """How many tokens the samples of a task have.

    Attributes:
      edges, counts: as those of a histogram of the manifest.
      records: that were tokenised.
      of: records in all.
    """

    edges: list[int]
    counts: list[int]
    records: int
    of: int


def count_tokens(folder: epath.Path, manifest: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, TokenCounts]:
    """Tokenises the samples in words, by task; of a task with many records `RECORDS_TOKENISED`, evenly spread."""
    split = manifest["split"].lower().replace("-", "_")
    counted = {}
    for task in tasks_of(manifest):
        reader = RecordReader(folder / task, split)
        wanted = np.unique(np.linspace(0, len(reader) - 1, min(len(reader), RECORDS_TOKENISED)).round().astype(int))
        counts = [0] * len(_TOKEN_EDGES)
        for index in wanted.tolist():
            for content in single_contents(task, reader[index].content):
                length = len(tokenizer.encode_array(RECORD_TASKS[task].words(content)))
                counts[bisect.bisect_right(_TOKEN_EDGES, length) - 1] += 1
        counted[task] = TokenCounts(_TOKEN_EDGES, counts, len(wanted), len(reader))
    return counted


def histograms(manifest: Mapping[str, Any], tokens: Mapping[str, TokenCounts]) -> str:
    """The section with all charts. Tasks of one corpus often show the same pictures; their charts are drawn once."""
    content = []
    drawn: dict[str, str] = {}
    for task in tasks_of(manifest):
        of_task = manifest["histograms"][task]
        charts = [_chart(task, of_task[name], title) for name, title in _OF_TEXTS.items()]
        if task in tokens:
            charts.insert(1, _token_chart(task, tokens[task]))
        pictures = {name: of_task[name] for name in _OF_PICTURES}
        note = ""
        if any(pictures["bytes"]["counts"]):
            earlier = drawn.setdefault(repr(pictures), task)
            if earlier == task:
                charts += [_chart(task, of_task[name], title) for name, title in _OF_PICTURES.items()]
            else:
                note = f'<p class="soft small">The sizes of its pictures are those of {earlier}.</p>'
        if of_task["unreadable_pictures"]:
            note += f'<p class="bad small">{of_task["unreadable_pictures"]:,} pictures have no readable header.</p>'
        content.append(f"<h3>{task}</h3>{grid(filter(None, charts), wide=True)}{note}")
    intro = (
        "Counted are the records that were written, after all rules, those across pairs included. A bar counts the "
        "values from the number below it up to the next bar's. Texts are samples in words, as the captions of the "
        "samples below show them."
    )
    if not content:
        intro = "No record was written."
    return section("histograms", "Texts and pictures", intro, "".join(content))


def _chart(task: str, counted: Mapping[str, Any], title: str) -> str:
    """A histogram without the empty bars at its ends; empty if there is nothing to count."""
    counts = counted["counts"]
    if not any(counts):
        return ""
    bars = _bars(counted["edges"], counts)
    full = [number for number, count in enumerate(counts) if count]
    return card(title, histogram(bars[full[0] : full[-1] + 1], _NO_LIMIT, label=f"{task}: {title}"), "chart")


def _token_chart(task: str, tokens: TokenCounts) -> str:
    title = "tokens per sample"
    if tokens.records < tokens.of:
        title += f", of {tokens.records:,} of {tokens.of:,} records, evenly spread"
    return _chart(task, {"edges": tokens.edges, "counts": tokens.counts}, title)


def _bars(edges: Sequence[Any], counts: Iterable[int]) -> list[Bar]:
    bars = []
    for number, (edge, count) in enumerate(zip(edges, counts, strict=True)):
        if isinstance(edge, int):
            last = edges[number + 1] - 1 if number + 1 < len(edges) else _NO_LIMIT
            bars.append(Bar(edge, last, count, label=_short(edge)))
        else:
            over, under = edge
            label = f"{over}:{under}" if over else "0"
            bars.append(Bar(number, number + 1, count, label=label))
    return bars


def _short(value: int) -> str:
    """A power of two and the like as a label: 768, 48k, 3M (of 1024 and 1024^2)."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if value >= 8 * size and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)
