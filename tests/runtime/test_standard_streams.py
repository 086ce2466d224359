"""Output that nobody reads, closed descriptors, and letters that a terminal does not have end no command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Says more than a pipe holds, lets a child and a C library say something, and then works on.
COMMAND = """
import os, subprocess, sys
from pathlib import Path
from qwenvl_jax.runtime import commandline

def main():
    for _ in range(3000):
        print("a line of output \u2192 of a command")
        print("and of errors", file=sys.stderr)
    subprocess.run(["echo", "from a child"], check=True)
    file = open(os.environ["FILE"], "w")
    os.write(1, b"from C to output")
    os.write(2, b"from C to errors")
    file.write("the work")
    file.close()

commandline.run(main, needs_config=False)
"""


def command(file: Path) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", COMMAND], {**os.environ, "FILE": str(file)}


def test_the_reader_goes_away(tmp_path: Path) -> None:
    arguments, environment = command(tmp_path / "file")
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "file").read_text() == "the work"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_do_not_become_those_of_files(tmp_path: Path, closed: str) -> None:
    arguments, environment = command(tmp_path / "file")
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *arguments]
    assert subprocess.run(shell, env=environment, capture_output=True, timeout=60).returncode == 0
    assert (tmp_path / "file").read_text() == "the work"


def test_letters_that_the_output_does_not_have_are_escaped(tmp_path: Path) -> None:
    arguments, environment = command(tmp_path / "file")
    run = subprocess.run(arguments, env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60)
    assert run.returncode == 0 and b"a line of output \\u2192 of a command\n" in run.stdout
