"""Fixtures that tests of several packages share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.gcs_server import gcs, gcs_environment, gcs_server

__all__ = ["gcs", "gcs_environment", "gcs_server"]


def pytest_configure() -> None:
    """Ctrl-C has its meaning even if a shell started the tests in the background, where SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny records and their vocabulary."""
    from tests.support import tiny_run

    return tiny_run.write_data(tmp_path_factory.mktemp("tiny"))
