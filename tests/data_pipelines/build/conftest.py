"""A small corpus on a disk, its finished output, and ways to build and compare."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import beam
from data_pipelines.build.run import build
from tests.support import small_corpus


def one_by_one(steps: Sequence[beam.Step], options: Any) -> None:
    """Runs steps without Beam, which takes a second or two: for tests of what the steps leave in files."""
    for step in steps:
        for element in step.plan():
            step.work(element)


def run(folder: Path | str, output: Path | str, workers: int = 0, keep_work: bool = False, **changes: Any) -> Any:
    """Builds the small corpus, by Beam if it gets workers; the manifest."""
    job = small_corpus.job(folder, output, **changes)
    if workers:
        return build(job, beam.options([], workers), workers, keep_work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "run_steps", one_by_one)
        return build(job, beam.options([], 1), 1, keep_work)


def bytes_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def run_small() -> Callable[..., Any]:
    return run


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    return bytes_of


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """1,000 rows in 10 files."""
    folder = tmp_path / "corpus"
    small_corpus.write(folder, 1000)
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the small corpus, in a folder of its own with `corpus`; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    small_corpus.write(folder / "corpus", 1000)
    run(folder / "corpus", folder / "output", workers=1)
    return folder / "output"
