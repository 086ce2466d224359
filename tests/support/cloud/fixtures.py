"""The pretended cloud as a fixture, which conftest files import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cloud.pretended import PretendedCloud, pretended_cloud


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedCloud]:
    """A cloud of this test, whose gcloud, kubectl and gsutil are the first on PATH."""
    with pretended_cloud(tmp_path / "cloud") as cloud:
        monkeypatch.setenv("PATH", cloud.environment["PATH"])
        yield cloud
