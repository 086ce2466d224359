"""Every corpus of the table on its fixture."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from data_pipelines.corpora.table import CORPORA
from data_pipelines.ocr.html import BROWSERS
from data_pipelines.pair import FailedRow, RawPair, Row
from qwenvl_jax.data.schema import TASKS
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora.table import FIXTURES

needs_chromium = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed")
each_corpus = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[needs_chromium] if name == "html_pages" else []) for name in sorted(CORPORA)],
)


def written(name: str, folder: Path) -> Path:
    FIXTURES[name](folder)
    return folder


def test_every_corpus_has_a_fixture_and_the_table_is_sorted() -> None:
    assert list(CORPORA) == sorted(CORPORA)
    assert set(FIXTURES) == set(CORPORA)


@each_corpus
def test_the_facts_of_an_entry_are_stated(name: str) -> None:
    corpus = CORPORA[name]
    assert corpus.name == name == name.lower()
    assert corpus.license
    assert corpus.home_page.startswith("https://")
    assert corpus.splits
    assert corpus.language in ("en", "zh", "")
    assert corpus.tasks and set(corpus.tasks) <= set(TASKS)
    assert pickle.loads(pickle.dumps(corpus)).name == name  # workers get it


@each_corpus
def test_reading_is_deterministic_and_ids_are_unique(name: str, tmp_path: Path) -> None:
    corpus = CORPORA[name]
    first = written(name, tmp_path / "first")
    second = written(name, tmp_path / "second")
    for split in corpus.splits:
        rows = list(corpus.read(first, split))
        assert rows == list(corpus.read(first, split))
        pairs = [row for row in rows if isinstance(row, RawPair)]
        assert pairs, split
        assert len({pair.id for pair in pairs}) == len(pairs)
        for pair in pairs:
            assert pair.id and pair.source == name and pair.license
            assert pair.texts or pair.questions or pair.regions or pair.lines or pair.turns
            for picture in pair.pictures:
                assert picture.read()
        assert [identity(row) for row in corpus.read(second, split)] == [identity(row) for row in rows]


def identity(row: Row) -> object:
    return row.id if isinstance(row, RawPair) else row.reason


@each_corpus
def test_a_folder_of_something_else_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("nothing")
    corpus = CORPORA[name]
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "notes"):
        with pytest.raises(UserError) as error:
            list(corpus.read(folder, next(iter(corpus.splits))))
        assert "\n" not in str(error.value)


def test_an_unknown_split_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cc3m has no split 'trian'; did you mean 'train'\?; it has train, val"):
        list(CORPORA["cc3m"].read(tmp_path, "trian"))


def test_failed_rows_have_few_reasons(tmp_path: Path) -> None:
    reasons = set()
    for name, corpus in CORPORA.items():
        if name == "html_pages" and not any(map(shutil.which, BROWSERS)):
            continue
        folder = written(name, tmp_path / name)
        for split in corpus.splits:
            reasons |= {row.reason for row in corpus.read(folder, split) if isinstance(row, FailedRow)}
    assert reasons
    assert all(len(reason) < 40 for reason in reasons)
