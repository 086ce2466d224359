"""The progress of a run, from its work folder."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.build import parts, progress
from data_pipelines.build.progress import Progress
from data_pipelines.build.scores import PartScores, scores_file
from tests.support import small_corpus


def test_the_line_counts_parts_rows_and_failures(run_small: Any, small_folder: Path, tmp_path: Path) -> None:
    run_small(small_folder, tmp_path / "output", keep_work=True)
    job = small_corpus.job(small_folder, tmp_path / "output")
    every = parts.list_parts(job, parts.list_inputs(job, 1))
    files = sorted((tmp_path / ".output.work" / "clean").iterdir())
    for file in files[3:]:
        file.rename(tmp_path / file.name)
    progress = Progress(job, every)
    assert progress.line().startswith("3 of 10 parts: 300 rows, 0 rows/s, ")
    for file in files[3:5]:
        (tmp_path / file.name).rename(file)
    assert progress.line().startswith("5 of 10 parts: 500 rows, ")
    assert "% left" in progress.line() and "0 failed" not in progress.line()
    for file in files[5:]:
        (tmp_path / file.name).rename(file)
    assert "1,000 rows" in progress.line() and "parts" not in progress.line()


def test_parts_whose_footers_were_not_read_yet_are_estimated(
    run_small: Any, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_folder, tmp_path / "output", keep_work=True)
    job = small_corpus.job(small_folder, tmp_path / "output")
    every = parts.list_parts(job, parts.list_inputs(job, 1))
    monkeypatch.setattr(progress, "_FOOTERS", 4)
    shown = progress.Progress(job, every)
    assert "about 1,000 rows" in shown.line()
    assert ": 1,000 rows" in shown.line()


def test_the_line_counts_parts_that_have_scores(run_small: Any, small_folder: Path, tmp_path: Path) -> None:
    run_small(small_folder, tmp_path / "output", keep_work=True)
    job = small_corpus.job(small_folder, tmp_path / "output", clip=types.SimpleNamespace(identity="a model"))
    every = parts.list_parts(job, parts.list_inputs(job, 1))
    shown = progress.Progress(job, every)
    assert shown.line().startswith("scored 0 of 10 parts: ")
    for number, part in enumerate(every):
        assert number == 0 or shown.line().startswith(f"scored {number} of 10 parts: ")
        PartScores().write(scores_file(job, part))
    assert shown.line().startswith("0 of 10 parts: ")
