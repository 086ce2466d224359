"""Histograms count what numpy counts, in any order, and only pairs that all rules have kept."""

from __future__ import annotations

import fractions
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.build.histograms import ASPECTS, EDGES, Histograms, aspect_bin, merged
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record, sample_count


def counted(edges: list[int], values: list[int]) -> list[int]:
    """By numpy; the last bin has no end."""
    return np.histogram(values, [*edges, 1 << 40])[0].tolist()


def test_the_manifest_counts_the_records_that_were_written(built: Path) -> None:
    histograms = json.loads((built / "manifest.json").read_text())["histograms"]
    texts = [record.content["text"] for record in RecordReader(built / "text")]  # type: ignore[typeddict-item]
    assert histograms["text"]["characters"]["counts"] == counted(EDGES["characters"], list(map(len, texts)))
    assert not any(histograms["text"]["samples"]["counts"]) and not any(histograms["text"]["bytes"]["counts"])
    images = [record.images[0] for record in RecordReader(built / "caption")]
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    assert histograms["caption"]["width"]["counts"] == counted(EDGES["width"], [width for width, _ in sizes])
    assert histograms["caption"]["height"]["counts"] == counted(EDGES["height"], [height for _, height in sizes])
    assert histograms["caption"]["bytes"]["counts"] == counted(EDGES["bytes"], list(map(len, images)))
    assert (
        sum(histograms["caption"]["aspect"]["counts"]) == sum(histograms["caption"]["samples"]["counts"]) == len(images)
    )


def record(samples: int, image: bytes) -> Record:
    annotations = [{"question": f"What is {number}?", "answer": "1"} for number in range(samples)]
    content: Any = {"annotations": annotations}
    return Record("r", "vqa", "s", "en", "", (image,), content)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_merging_in_any_order_gives_the_histograms_of_all_records() -> None:
    draw = random.Random(5)
    records = [record(draw.randint(1, 9), png(draw.randint(1, 99), draw.randint(1, 99))) for _ in range(40)]
    records.append(record(2, b"no picture"))
    whole = Histograms()
    assert list(whole.counted(records)) == records
    histograms = []
    for start in range(0, len(records), 7):
        part = Histograms()
        list(part.counted(records[start : start + 7]))
        histograms.append(json.loads(json.dumps(part.as_json())))
    draw.shuffle(histograms)
    assert merged(histograms) == whole.as_json()
    assert whole.as_json()["unreadable_pictures"] == 1
    assert sum(whole.as_json()["samples"]["counts"]) == 41
    assert sum(whole.as_json()["characters"]["counts"]) == sum(map(sample_count, records))


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_the_bin_of_a_picture_is_that_of_its_exact_ratio(width: int, height: int) -> None:
    ratios = [fractions.Fraction(*edge) for edge in ASPECTS]
    assert ratios == sorted(set(ratios))
    number = aspect_bin(width, height)
    assert ratios[number] <= fractions.Fraction(width, height)
    assert number + 1 == len(ratios) or fractions.Fraction(width, height) < ratios[number + 1]


def test_edges_ascend_and_hold_every_value() -> None:
    for edges in EDGES.values():
        assert edges == sorted(set(edges)) and edges[0] in (0, 1)
