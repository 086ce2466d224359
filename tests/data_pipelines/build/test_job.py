"""The digest of the code: every file that can change an output is in it, and nothing that editors leave there."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

import data_pipelines
from data_pipelines.build.job import code_digest
from qwenvl_jax import data, html


@pytest.fixture(params=[data_pipelines, data, html], ids=lambda package: package.__name__)
def package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a package, whose files the digest reads."""
    original: ModuleType = request.param
    copy = tmp_path / "package"
    shutil.copytree(original.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(original, "__path__", [str(copy)])
    return copy


def test_the_digest_does_not_depend_on_the_folder(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = code_digest()
    monkeypatch.undo()
    assert code_digest() == copied


@pytest.mark.parametrize("name", ["rule.py", "script.js", "style.css", "sub/table.json", "words.txt"])
def test_files_of_any_kind_change_the_digest(package: Path, name: str) -> None:
    before = code_digest()
    (package / "sub").mkdir()
    (package / name).write_text("1")
    added = code_digest()
    (package / name).write_text("2")
    assert len({before, added, code_digest()}) == 3


@pytest.mark.parametrize("name", [".rule.py.swp", "rule.py~", "__pycache__/rule.pyc", ".cache/x.json"])
def test_leftovers_of_tools_do_not_change_the_digest(package: Path, name: str) -> None:
    before = code_digest()
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("1")
    assert code_digest() == before
