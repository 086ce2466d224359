"""How a command ends on an error."""

from __future__ import annotations

import pytest

from qwenvl_jax.runtime.errors import UserError, exit_on_user_error, one_line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "error: this machine has no memory left; free some and run the same command again\n"),
        (
            MemoryError("a decoding process has no memory left"),
            "error: this machine has no memory left (a decoding process has no memory left); free some and run the "
            "same command again\n",
        ),
    ],
)
def test_a_lack_of_memory_is_one_sentence(error: MemoryError, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == message


def test_characters_that_change_a_terminal_are_printed_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files and answers of servers are not ours: they may clear a screen or turn the direction of a text."""
    with pytest.raises(SystemExit), exit_on_user_error():
        raise UserError("a\x1b[2J \u202eb\x00 \ud800 \u4e2d\u6587 \u00fc\nc")
    assert capsys.readouterr().err == "error: a\\x1b[2J \\u202eb\\x00 \\ud800 \u4e2d\u6587 \u00fc c\n"


def test_an_error_that_cannot_be_printed_is_named() -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Wordless()) == "Wordless"
