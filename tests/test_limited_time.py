"""The limit on the time of slow tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.limited_time import MINUTES, ORDER

TESTS = """
import pytest

@pytest.mark.slow
def test_slow():
    pass

def test_fast():
    pass
"""


def run(folder: Path, *options: str, **variables: str) -> list[str]:
    """The lines of a session over three files with a slow and a fast test each."""
    for name in ("test_a.py", "test_b.py", "test_c.py"):
        (folder / name).write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    plugins = ("-p", "tests.support.limited_time", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *plugins, "-v", "-rs"]
    environment = {name: value for name, value in os.environ.items() if name not in (MINUTES, ORDER)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), **variables}
    process = subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    return process.stdout.splitlines()


def files(lines: list[str]) -> list[str]:
    return [line[:9] for line in lines if line.startswith("test_") and "::" in line]


def test_nothing_is_left_out_without_a_limit(tmp_path: Path) -> None:
    lines = run(tmp_path)
    assert files(lines) == ["test_a.py"] * 2 + ["test_b.py"] * 2 + ["test_c.py"] * 2
    assert "6 passed" in lines[-1]


def test_slow_tests_end_with_the_time(tmp_path: Path) -> None:
    lines = run(tmp_path, SLOW_TEST_MINUTES="0")
    assert "3 passed, 3 skipped" in lines[-1]
    assert any("0 minutes for slow tests are over" in line for line in lines)
    assert "6 passed" in run(tmp_path, SLOW_TEST_MINUTES="10")[-1]


def test_the_order_of_files_is_that_of_the_commit(tmp_path: Path) -> None:
    sessions = [run(tmp_path, SLOW_TEST_MINUTES="10", SLOW_TEST_ORDER=str(commit)) for commit in range(4)]
    orders = {tuple(files(lines)) for lines in sessions}
    assert len(orders) > 1
    assert all(order[::2] == order[1::2] for order in orders), "the tests of a file stay together"
