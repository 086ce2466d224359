"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gcs_server import gcs, gcs_environment, gcs_server
from tests.support.limited_time import pytest_collection_modifyitems, pytest_runtest_setup
from tests.support.logging_state import logging_kept

__all__ = ["gcs", "gcs_environment", "gcs_server", "pytest_collection_modifyitems", "pytest_runtest_setup"]


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C has its meaning even if a shell started the tests in the background, where SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_compiled_programs(config)


def keep_compiled_programs(config: pytest.Config) -> None:
    """Programs that many tests compile, such as the step of the tiny model, are compiled once by every worker.

    The processes that tests start find them too. A folder for all workers would not do: JAX writes its files in place.
    """
    folder = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_compilation_cache_dir", folder.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def logging_of_before() -> Iterator[None]:
    with logging_kept():
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny records and their vocabulary."""
    from tests.support import tiny_run

    return tiny_run.write_data(tmp_path_factory.mktemp("tiny"))
