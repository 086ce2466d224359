"""Fonts, texts and photographs for synthetic pages that need no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic import Ingredients
from data_pipelines.ocr.synthetic_text import Texts
from data_pipelines.quickstart.word_fonts import BUILT_IN
from tests.support.corpora.rendered import ENGLISH, write_photographs


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def english(photograph_folder: Path) -> Ingredients:
    return Ingredients("en", [BUILT_IN], Texts(ENGLISH), Photographs.in_folders([photograph_folder]))
