"""Annotated corpora through the whole build, cut into strides: the records are those of their pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import beam
from data_pipelines.__main__ import main
from data_pipelines.build import parts
from data_pipelines.clean.rule import judge
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import FailedRow, RawPair
from data_pipelines.recipes.table import RECIPES
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime.artifacts import read_json
from tests.support.corpora.table import FIXTURES


def identity(record: Record) -> str:
    return record.id


def one_by_one(steps: Sequence[beam.Step], options: Any) -> None:
    """Runs steps without Beam, which takes a second or two."""
    for step in steps:
        for element in step.plan():
            step.work(element)


def composed(name: str, task: str, folder: Path) -> list[Record]:
    """The records of a corpus, made one after the other."""
    records = []
    for row in CORPORA[name].read(folder):
        if isinstance(row, RawPair):
            record = COMPOSERS[task](judge(RECIPES[name], row).pair)
            records += [record] if record else []
    return records


@pytest.mark.parametrize("name", ["gqa", "grit", "refcoco", "visual_genome", "vqav2"])
def test_the_records_of_a_build_are_those_of_the_pairs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    FIXTURES[name](folder)
    monkeypatch.setattr(parts, "BYTES_PER_STRIDE", 200)
    monkeypatch.setattr(beam, "run_steps", one_by_one)
    main([name, f"--input={folder}", f"--output={tmp_path / 'out'}", "--workers=1"])
    for task in CORPORA[name].tasks:
        reader = RecordReader(tmp_path / "out" / task)
        built = [reader[index] for index in range(len(reader))]  # stride after stride
        assert sorted(built, key=identity) == sorted(composed(name, task, folder), key=identity)
    manifest = read_json(tmp_path / "out" / "manifest.json")
    rows = list(CORPORA[name].read(folder))
    assert manifest["rows"] == len(rows)
    assert manifest["failed"]["rows"] == sum(isinstance(row, FailedRow) for row in rows)
