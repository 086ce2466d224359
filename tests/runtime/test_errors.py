"""How a command ends on an error."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from qwenvl_jax.runtime.errors import UserError, exit_on_user_error, one_line

ROOT = Path(__file__).parents[2]


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


def sentence_of(node: ast.expr) -> str:
    """The text of a message, with `{source}` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(sentence_of, node.values))
    return f"{{{ast.unparse(node)}}}"


# How a sentence says what to do: after a semicolon, by a command, by what is valid, or by the nearest name.
NEXT_STEP = re.compile(
    r"; |\bmust\b|\bonly\b|nearest\(|^(name|give)\b|so write|not one of|does not begin with one of|_cause\("
)


def test_every_mistake_has_a_next_step() -> None:
    packages = ("launch", *(f"qwenvl_jax/{name}" for name in ("chips", "checkpoint", "runtime", "training")))
    sentences = []
    for file in (file for package in packages for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                text = sentence_of(node.args[0])
                if not re.fullmatch(r"\{[\w.]+(\(.*\))?\}|\{.*\}: \{.*\}", text):  # made elsewhere
                    sentences.append(f"{file.relative_to(ROOT)}:{node.lineno}: {text}")
    assert len(sentences) > 100
    assert [sentence for sentence in sentences if not NEXT_STEP.search(sentence.split(": ", 1)[1])] == []
