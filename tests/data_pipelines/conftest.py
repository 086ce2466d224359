"""Small settings, and a data set built from rendered sources: nothing here needs the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data_pipelines.quickstart.build import build
from data_pipelines.quickstart.ingredients import Ingredients, load_ingredients
from data_pipelines.quickstart.scenes import SceneSettings
from data_pipelines.quickstart.settings import QuickstartSettings


@pytest.fixture(scope="session")
def settings() -> QuickstartSettings:
    scene = SceneSettings(stamp_count=12)
    return QuickstartSettings(
        source="rendered", train=30, heldout=9, records_per_shard=16, vocab_size=400, scene=scene
    ).check()


@pytest.fixture(scope="session")
def ingredients(settings: QuickstartSettings, tmp_path_factory: pytest.TempPathFactory) -> Ingredients:
    return load_ingredients(settings, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def built(settings: QuickstartSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set; tests must not change it."""
    folder = tmp_path_factory.mktemp("built") / "quickstart"
    build(settings, folder, folder.parent / "cache")
    return folder


@pytest.fixture
def tiny(settings: QuickstartSettings) -> QuickstartSettings:
    """As small as a data set can be, for tests that build one."""
    return dataclasses.replace(settings, train=4, heldout=2, records_per_shard=4)
