"""A printed command is the command that runs: quoting, pipelines, waiting, texts."""

from __future__ import annotations

import string
import subprocess

from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.command import Command

# Prints its arguments, each with a NUL, then the variable A and the input.
SHOW = ("sh", "-c", 'printf "%s\\0" "$@" "$A"; cat', "show")
# What a command line may hold: anything but NUL and lone surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def shown(command: Command) -> list[str]:
    done = subprocess.run(["sh", "-c", command.shell], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.decode().split("\0")


@settings(max_examples=50, deadline=None)
@given(arguments=st.lists(texts, max_size=3), value=texts, stdin=texts)
@example(arguments=[], value="", stdin="E\x80")
@example(arguments=[], value="", stdin="\n".join([*string.ascii_uppercase, "END", "END_", "END\xe9"]))
def test_a_shell_reads_back_the_same_arguments(arguments: list[str], value: str, stdin: str) -> None:
    command = Command((*SHOW, *arguments), "Why.", stdin=stdin, environment={"A": value})
    complete = stdin if not stdin or stdin.endswith("\n") else stdin + "\n"
    assert shown(command) == [*arguments, value, complete]


def test_a_pipeline() -> None:
    command = Command((*SHOW, "last"), "Why.", input_from=("printf", "%s\\n", "one", "two's"), environment={"A": ""})
    assert shown(command) == ["last", "", "one\ntwo's\n"]


def test_waiting_ends_with_the_first_wanted_or_unwanted_output() -> None:
    wanted = Command(("echo", "ACTIVE"), "Why.", until=("ACTIVE",), unless=("FAILED", "SUSPENDED"))
    assert subprocess.run(["sh", "-c", wanted.shell], timeout=10, check=False).returncode == 0
    unwanted = Command(("echo", "SUSPENDED"), "Why.", until=("ACTIVE",), unless=("FAILED", "SUSPENDED"))
    assert subprocess.run(["sh", "-c", unwanted.shell], timeout=10, check=False).returncode == 1
