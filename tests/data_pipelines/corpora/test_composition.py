"""The pairs of every corpus become well-formed records of the tasks that its entry names."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.clean.grounding import boxes_in_picture, flat_spans, spans_in_text
from data_pipelines.clean.rule import judge, rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.ocr.html import BROWSERS
from data_pipelines.pair import Picture, RawPair
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.schema import Record, samples_of
from tests.support.corpora.table import FIXTURES

# Regions must fit their text and picture before they can be composed.
RULES = (rule(boxes_in_picture), rule(spans_in_text), rule(flat_spans))


def opened(pair: RawPair) -> RawPair:
    """The pair with the bytes and true sizes of its pictures."""
    encoded = [picture.read() for picture in pair.pictures]
    sizes = [Image.open(io.BytesIO(payload)).size for payload in encoded]
    pictures = [Picture(payload, "", *size) for payload, size in zip(encoded, sizes, strict=True)]
    return dataclasses.replace(pair, pictures=tuple(pictures))


def records(name: str, task: str, folder: Path) -> Iterator[Record]:
    corpus = CORPORA[name]
    for split in corpus.splits:
        for row in corpus.read(folder, split):
            if not isinstance(row, RawPair):
                continue
            pair = opened(row)
            judged = judge(RULES, pair) if pair.regions and task != "evaluation" else None
            if judged is not None and judged.dropped is not None:
                continue
            record = COMPOSERS[task](judged.pair if judged else pair)
            if record is not None:
                yield record


def cases() -> Iterator[object]:
    """Every corpus with each of its tasks; HTML pages only if there is a browser."""
    no_browser = not any(map(shutil.which, BROWSERS))
    for name, corpus in CORPORA.items():
        skipped = pytest.mark.skipif(name == "html_pages" and no_browser, reason="Chromium is not installed")
        yield from (pytest.param(name, task, marks=skipped) for task in corpus.tasks)


@pytest.mark.parametrize(("name", "task"), cases())
def test_every_corpus_gives_records_of_its_tasks(name: str, task: str, tmp_path: Path) -> None:
    FIXTURES[name](tmp_path)
    composed = list(records(name, task, tmp_path))
    assert composed
    for record in composed:
        assert record.task == task and record.source == name
        assert record.language in ("en", "zh")
        if task == "evaluation":
            continue
        for sample in samples_of(record):
            assert any(piece.supervised for piece in training_pieces(sample))
