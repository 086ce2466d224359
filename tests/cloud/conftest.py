"""The pretended cloud as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cloud.pretended import PretendedCloud, pretended_cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[PretendedCloud]:
    """A cloud of this test, with gcloud, kubectl and gsutil as its programs."""
    with pretended_cloud(tmp_path / "cloud") as cloud:
        yield cloud
