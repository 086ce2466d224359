"""A printed command is the command that runs: quoting, pipelines, waiting, texts."""

from __future__ import annotations

import json
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from launch.command import Command

SHOW = "import json, os, sys; json.dump([sys.argv[1:], sys.stdin.read(), os.environ.get('A')], sys.stdout)"
# What a command line may hold: anything but NUL and lone surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def shown(command: Command) -> list[object]:
    done = subprocess.run(["sh", "-c", command.shell], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return json.loads(done.stdout)


@settings(max_examples=25, deadline=None)
@given(arguments=st.lists(texts, max_size=3), value=texts, stdin=texts)
def test_a_shell_reads_back_the_same_arguments(arguments: list[str], value: str, stdin: str) -> None:
    command = Command((sys.executable, "-c", SHOW, *arguments), "Why.", stdin=stdin, environment={"A": value})
    expected = stdin if not stdin or stdin.endswith("\n") else stdin + "\n"
    seen = shown(command)
    assert seen[0] == arguments
    assert seen[2] == value
    assert str(seen[1]).split() == expected.split()


def test_a_pipeline() -> None:
    command = Command((sys.executable, "-c", SHOW), "Why.", input_from=("printf", "%s\n", "one", "two's"))
    assert shown(command) == [[], "one\ntwo's\n", None]


def test_waiting_ends_with_the_first_wanted_or_unwanted_output() -> None:
    wanted = Command(("echo", "ACTIVE"), "Why.", until=("ACTIVE",), unless=("FAILED", "SUSPENDED"))
    assert subprocess.run(["sh", "-c", wanted.shell], timeout=10, check=False).returncode == 0
    unwanted = Command(("echo", "SUSPENDED"), "Why.", until=("ACTIVE",), unless=("FAILED", "SUSPENDED"))
    assert subprocess.run(["sh", "-c", unwanted.shell], timeout=10, check=False).returncode == 1
