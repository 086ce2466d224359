"""Maps agree with pixel masks of the boxes that other records of the same pictures state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.maps import MAP, NOTHING, QUESTION, MapContent
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.shards import make_records
from data_pipelines.quickstart.word_pictures import BACKGROUNDS, SIGN
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import content_of

SIDE, GRID = 100, 4


def expected(placed: Iterable[tuple[str, Any]]) -> list[str]:
    """The word of each cell by counting pixels: the thing that covers most of it, if that is 35 % or more."""
    cell = SIDE // GRID
    words = np.full(GRID**2, NOTHING, object)
    best = np.full(GRID**2, 0.35)
    for word, (x1, y1, x2, y2) in placed:
        mask = np.zeros((SIDE, SIDE))
        mask[y1:y2, x1:x2] = 1
        shares = mask.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3)).ravel()
        words[shares >= best] = word
        best = np.maximum(best, shares)
    return list(words)


def objects_of(grounding: Any) -> list[tuple[str, Any]]:
    return [(part["text"].split()[-1], box) for part in grounding.content["segments"] for box in part["boxes"]]


def words_of(ocr: Any) -> list[tuple[str, Any]]:
    lines = ((line["text"], np.array(line["quad"])) for line in ocr.content["lines"])
    return [(text, (*quad.min(axis=0), *quad.max(axis=0))) for text, quad in lines]


def test_a_map_names_what_covers_each_cell_of_its_picture(built: Path) -> None:
    readers = {task: RecordReader(built / task, "heldout") for task in (MAP, "grounding", "ocr")}
    kinds = set()
    for number in range(len(readers[MAP])):
        record = readers[MAP][number]
        source = readers["ocr" if number % 2 else "grounding"][number]
        assert record.task == "vqa" and record.images == source.images
        content = content_of(record, MapContent)
        assert content["question"] == QUESTION
        placed = words_of(source) if number % 2 else objects_of(source)
        assert content["answer"].split(" ") == expected(placed)
        kinds.add(source.task)
    assert kinds == {"grounding", "ocr"}


@pytest.fixture(scope="module")
def texts(settings: QuickstartSettings, ingredients: Ingredients) -> list[Any]:
    records = make_records(dataclasses.replace(settings, train=120, records_per_shard=120), ingredients, "train", 0)
    return [record for record in records["text"] if record.content.get("question") == QUESTION]


def test_the_map_of_a_picture_made_of_words_repeats_all_but_the_background(texts: list[Any]) -> None:
    surfaces = set()
    for record in texts:
        words = record.content["words"].split(" ")
        assert record.content["answer"].split(" ") == [
            NOTHING if word in (*BACKGROUNDS, SIGN) else word for word in words
        ]
        surfaces |= set(words) & {*BACKGROUNDS, SIGN}
    assert SIGN in surfaces and len(surfaces) > 2
