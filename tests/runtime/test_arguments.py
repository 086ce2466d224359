"""The commands without a config file: a mistake on the command line is one sentence, with the nearest flag."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "data_pipelines",
    "data_pipelines.debian",
    "data_pipelines.dialogues",
    "data_pipelines.duplicates.decontaminate",
    "data_pipelines.duplicates.untouched",
    "data_pipelines.quickstart",
    "data_pipelines.quickstart.catalogue",
    "data_pipelines.report",
    "launch.finished",
    "launch.host",
    "launch.recipes",
    "launch.source",
    "qwenvl_jax.infer",
    "qwenvl_jax.quickstart",
    "qwenvl_jax.serve",
)


def parser() -> Parser:
    made = Parser("python -m mine", "What it does.\n\n    an example\n")
    made.add_argument("folder")
    made.add_argument("--output", default="x")
    made.add_argument("--count", type=int, default=1)
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: folder; see --help"),
        (["f", "--outptu=y"], "unknown flag --outptu; did you mean '--output'?; see --help"),
        (["f", "--zzzz=y"], "unknown flag --zzzz; see --help"),
        (["f", "--outp=y"], "unknown flag --outp; did you mean '--output'?; see --help"),
        (["f", "g"], "unexpected argument 'g'; see --help"),
        (["f", "--count=many"], "argument --count: invalid int value: 'many'; see --help"),
        (
            ["f", "--output="],
            "--output has an empty value; give it one or leave out the flag",
        ),
        (
            ["f", "--output", ""],
            "--output has an empty value; give it one or leave out the flag",
        ),
        (
            ["f", "--runner="],
            "--runner has an empty value; give it one or leave out the flag",
        ),
        (["f\udcff"], r"the argument 'f\udcff' is not valid UTF-8; rename what it names"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        parser().parse_args(arguments)
    assert str(refused.value) == message


def test_flags_are_parsed_and_help_shows_the_description_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert vars(parser().parse_args(["f", "--count=3"])) == {"folder": "f", "output": "x", "count": 3}
    with pytest.raises(SystemExit, match="0"):
        parser().parse_args(["--help"])
    assert "What it does.\n\n    an example\n" in capsys.readouterr().out


def test_no_command_parses_its_flags_otherwise() -> None:
    files = [file for package in ("data_pipelines", "launch", "qwenvl_jax") for file in (ROOT / package).rglob("*.py")]
    users = [file.relative_to(ROOT).as_posix() for file in files if "argparse.ArgumentParser" in file.read_text()]
    assert users == ["qwenvl_jax/runtime/arguments.py"]
    parsing = {file for file in files if "import Parser" in file.read_text()}
    names = {file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in parsing}
    assert {name.removesuffix(".__main__") for name in names} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_on_a_mistake_with_one_line(command: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", command, "--no_such_flag=1"]
    if command == "data_pipelines":
        arguments += ["cc12m", f"--input={tmp_path}", f"--output={tmp_path}/output"]  # unknown flags may be Beam's
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: ")
