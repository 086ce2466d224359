"""Runs as many of the slow tests as fit into some minutes; other ones at every commit.

    SLOW_TEST_MINUTES=20 SLOW_TEST_ORDER=$(git rev-parse HEAD) python -m pytest -n 2 -m slow

Hooks of pytest, which tests/conftest.py has. Without the first variable they do nothing. Files come in an order that
the second one decides; a slow test that would begin after the minutes is skipped, and says so.
"""

from __future__ import annotations

import hashlib
import os
import time

import pytest

MINUTES = "SLOW_TEST_MINUTES"
ORDER = "SLOW_TEST_ORDER"

_BEGAN = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The same order in all workers; the tests of a file stay together, because they share fixtures."""
    if MINUTES in os.environ:
        order = os.environ.get(ORDER, "")
        items.sort(key=lambda item: hashlib.sha256(f"{order} {item.path.name}".encode()).digest())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what begins too late."""
    minutes = float(os.environ.get(MINUTES, "inf"))
    if item.get_closest_marker("slow") and time.monotonic() - _BEGAN > minutes * 60:
        pytest.skip(f"the {minutes:g} minutes for slow tests are over; this one runs at another commit")
