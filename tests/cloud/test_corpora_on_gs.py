"""Corpora on an object store give the rows that they give on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.corpora.table import CORPORA
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError
from tests.support.corpora.table import FIXTURES
from tests.support.faulty_gcs import between, told

# One corpus per way of reading files.
NAMES = (
    *("cc12m", "coco_captions", "coyo_700m", "laion_en", "laion_zh", "llava", "synthdog_en", "text"),
    *("ai2d", "grit", "refcoco", "visual_genome", "vqav2"),
    *("grit_refexp", "mmbench", "mme", "mmlu", "scienceqa", "seed_bench"),
)


@pytest.fixture(scope="module", params=NAMES)
def on_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    FIXTURES[request.param](folder)
    return request.param, folder


@pytest.fixture
def on_gs(on_disk: tuple[str, Path], gcs: str) -> str:
    for path in sorted(on_disk[1].rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{gcs}/{path.relative_to(on_disk[1])}", path.read_bytes())
    return gcs


def rows(name: str, folder: str | Path) -> list[str]:
    """The rows of the first split, with paths of pictures relative to the folder."""
    corpus = CORPORA[name]
    return [repr(row).replace(f"{folder}/", "") for row in corpus.read(folder, next(iter(corpus.splits)))]


def test_equal_to_the_disk(on_disk: tuple[str, Path], on_gs: str) -> None:
    name, folder = on_disk
    assert rows(name, on_gs) == rows(name, folder)


@pytest.mark.slow
def test_faults_change_nothing(on_disk: tuple[str, Path], on_gs: str, gcs_server: str) -> None:
    name, folder = on_disk
    expected = rows(name, folder)
    with between(gcs_server, rate=0.3, seed=3, kinds="503,429,reset,short") as url:
        for _ in range(4):
            assert rows(name, on_gs) == expected
        assert sum(told(url)["faults"].values())


def test_a_fault_that_does_not_end_is_never_damage(
    on_disk: tuple[str, Path], on_gs: str, gcs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = on_disk
    corpus = CORPORA[name]
    split = next(iter(corpus.splits.values()))
    folder = storage.path(on_gs)
    [file, *_] = corpus.layout.files(folder, split)
    monkeypatch.setenv("QWENVL_STORAGE_PATIENCE", "0.2")
    with (
        between(gcs_server, rate=1, kinds="503,reset"),
        pytest.raises(StorageError, match="could not be reached"),
    ):
        list(corpus.layout.read_file(corpus, folder, split, file))
