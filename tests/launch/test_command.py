"""A printed command means the arguments that would be run."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from launch.command import Command

_TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)
_ECHO = "import sys; print(sys.argv[1:], repr(sys.stdin.read()))"


@settings(max_examples=15, deadline=None)
@given(st.lists(_TEXTS, max_size=4), st.text(st.sampled_from("END_\n$`'\"\\ x"), max_size=30))
def test_a_shell_reads_a_command_back(arguments: list[str], stdin: str) -> None:
    """Quotes, dollars, newlines and the end mark itself reach the program as they are."""
    command = Command((sys.executable, "-c", _ECHO, *arguments), "Prints its arguments.", stdin=stdin)
    output = subprocess.run(["sh", "-c", command.shell], input=b"", capture_output=True, check=True).stdout
    expected = stdin if stdin.endswith("\n") or not stdin else stdin + "\n"
    assert output.decode() == f"{arguments} {expected!r}\n"
