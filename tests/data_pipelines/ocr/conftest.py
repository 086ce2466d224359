"""Fonts, texts and photographs for synthetic pages that need no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.ocr.fonts import Font, english_fonts
from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic import Ingredients
from data_pipelines.ocr.synthetic_text import Texts
from tests.support.corpora.rendered import ENGLISH, write_photographs


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def english(photograph_folder: Path) -> Ingredients:
    fonts: list[Font] = english_fonts(None)
    return Ingredients("en", fonts, Texts(ENGLISH), Photographs.in_folders([photograph_folder]))
