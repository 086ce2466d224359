"""The facts about all parts are collected once per run, in blocks, and the blocks change nothing."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import beam
from data_pipelines.build import parts, survey
from data_pipelines.build.part_files import PartReader
from data_pipelines.build.run import build
from qwenvl_jax.runtime import storage
from tests.support import small_corpus


@pytest.mark.parametrize("block_parts", [1, 3])
def test_blocks_change_nothing(
    block_parts: int,
    built: Path,
    run_small: Any,
    contents: Any,
    small_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With files that are cut into strides, whose failed rows are merged, and with a retry."""
    monkeypatch.setattr(parts, "BYTES_PER_STRIDE", 2500)
    run_small(small_folder, tmp_path / "one")
    monkeypatch.setattr(parts, "_BLOCK_PARTS", block_parts)
    run_small(small_folder, tmp_path / "many", keep_work=True)
    blocks = list(tmp_path.glob(".many.work/run-*/block-*.json"))
    assert len(blocks) == len(list(tmp_path.glob(".many.work/run-*/parts/*.json"))) > 5
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    run_small(small_folder, tmp_path / "many", retry=True)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert not list(tmp_path.glob(".many.work/run-*"))


def test_no_process_reads_the_footers_of_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element is worked on as by a process of its own."""
    small_corpus.write(tmp_path / "corpus", 600, per_file=20)
    opened: collections.Counter[str] = collections.Counter()
    real = PartReader.__init__
    elements = 0

    def init(self: PartReader, path: Any) -> None:
        opened[Path(path).name] += 1
        real(self, path)

    def apart(steps: Sequence[beam.Step], options: Any) -> None:
        nonlocal elements
        for step in steps:
            for element in step.plan():
                survey.survey.cache_clear()
                elements += 1
                step.work(element)

    monkeypatch.setattr(PartReader, "__init__", init)
    monkeypatch.setattr(beam, "run_steps", apart)
    monkeypatch.setattr(survey, "_GROUP_BYTES", 2000)
    monkeypatch.setattr(survey, "_BUCKET_BYTES", 500)
    job = small_corpus.job(tmp_path / "corpus", tmp_path / "output", bytes_per_shard=5000)
    manifest = build(job, beam.options([], 1))
    shards = sum(len(split["shards"]) for split in manifest["tasks"].values())
    assert len(opened) == 30 and elements > 80 and shards > 10
    # Survey, two rules, sizes: 4. A shard opens a part for its index and again for its frames.
    assert sum(opened.values()) < 30 * 4 + 30 * 2 * 2 + 2 * shards + 100


def test_a_process_reads_one_file(
    run_small: Any, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_corpus.job(small_folder, tmp_path / "output")

    def apart(steps: Sequence[beam.Step], options: Any) -> None:
        for step in steps:
            for element in step.plan():
                step.work(element)

    monkeypatch.setattr(beam, "run_steps", apart)
    build(job, beam.options([], 1), keep_work=True)
    (folder,) = tmp_path.glob(".output.work/run-*")
    survey.survey.cache_clear()
    read: list[str] = []
    with storage.watched(read.append):
        known = survey.survey(dataclasses.replace(job, run=folder.name.removeprefix("run-")))
    assert read == [str(folder / "survey.json")]
    assert len(known.names) == 10 and all(known.file(part).exists() for part in range(10))


def test_files_on_a_store_are_looked_up_by_listing(gcs: str) -> None:
    small_corpus.write(f"{gcs}/corpus", 400, per_file=20, pictures=1)
    job = small_corpus.job(f"{gcs}/corpus", f"{gcs}/output")
    files = small_corpus.files(job.folder, "train")
    listed = parts._listed_entries(files)
    assert len(files) == 20
    assert {file: listed[str(file)] for file in map(str, files)} == {str(file): storage.entry(file) for file in files}
    assert parts._listed_entries(files[:3]) == {}
