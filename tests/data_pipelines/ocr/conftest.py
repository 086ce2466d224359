"""Fonts, texts and photographs for synthetic pages that need no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.ocr.fonts import Font, english_fonts
from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic import Ingredients
from data_pipelines.ocr.synthetic_text import Texts

ENGLISH = (
    "The ferry leaves the harbour at seven in the morning and returns before the tide turns.",
    "Twelve baskets of apples stood in the cellar; nobody had counted the pears.",
    "A letter from the library asked for three books that she had never borrowed (or so she said).",
)


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(3):
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{seed}.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def english(photograph_folder: Path) -> Ingredients:
    fonts: list[Font] = english_fonts(None)
    return Ingredients("en", fonts, Texts(ENGLISH), Photographs.in_folders([photograph_folder]))
