"""How a command ends on an error."""

from __future__ import annotations

import pytest

from qwenvl_jax.runtime.errors import exit_on_user_error, one_line


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


def test_an_error_that_cannot_be_printed_is_named() -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Wordless()) == "Wordless"
