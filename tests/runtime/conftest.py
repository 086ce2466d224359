"""Fixtures of tests with several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtime.processes import Parent, parents


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """Starts processes on a machine without TPUs."""
    yield from parents(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="session")
def tpu_parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """Starts processes that JAX takes for those of a TPU's host; they compute on CPUs."""
    yield from parents(tmp_path_factory.mktemp("tpu_processes"), JAX_FORCE_TPU_INIT="1")
