"""Command lines and config files that nobody means: one sentence and exit code 2, or they are taken as they are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.commands import Answer, assert_refused, run_commands

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "support" / "tiny_config.py"


def parse(lines: list[list[str]]) -> list[Answer]:
    return run_commands("qwenvl_jax.train", lines, function="read_config", environment={"JAX_PLATFORMS": "cpu"})


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "get_config"),
    "broken": (b"def (", "SyntaxError"),
    "binary": (b"\xff\xfe def", "SyntaxError"),
    "nul": (b"x = 1\0", "SyntaxError"),
    "none": (b"def get_config(): pass", "returns no config; get_config must end with `return`"),
    "list": (b"def get_config(): return [1]", "'list' object has no attribute 'items'"),
    "divides": (b"def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
    "recurs": (b"def get_config(): return get_config()", "RecursionError"),
    "ends": (b"import sys\ndef get_config(): sys.exit(0)", "SystemExit: 0"),
    "other error": (b"class Other(BaseException): pass\nraise Other('no')", "Other: no"),
    "lines": (b"raise KeyError('a\\nb')", "KeyError: 'a"),
    "asserts": (b"assert False", "AssertionError"),
    "imports": (b"import nothing_there", "No module named 'nothing_there'"),
    "no argument": (b"def get_config(): return {}", "lacks the key"),
    "strange": (b"def get_config(): return {'model': 3, 'data': None}", "config"),
}


def test_a_config_file_that_raises_anything_is_one_sentence(tmp_path: Path) -> None:
    lines = []
    for name, (body, _) in FILES.items():
        (tmp_path / f"{name}.py").write_bytes(body)
        lines.append([f"--config={tmp_path / name}.py"])
    for answer, (_, words) in zip(parse(lines), FILES.values(), strict=True):
        assert_refused(answer, words)


def test_arguments_that_cannot_be_meant_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.flags").write_bytes(b"--workdir=\xff")
    config = f"--config={TINY}"
    cases = {
        "--config=/tmp": ["is a folder"],
        "--config=": ["names no file"],
        "--config=\udcff.py": ["is not valid UTF-8"],
        "--config=a\nb.py": ["a b.py cannot be loaded"],
        f"--config={TINY}:x": ["more than once"],
        "--config.=1": ["config has no key ''"],
        "--config..=1": ["config has no key ''"],
        "--config.train=1": ["is not a dict"],
        "--config.train.steps=\udc80": ["is not valid UTF-8"],
        "--config.train.__class__=1": ["config.train has no key '__class__'"],
        "--config.data.mixture[x]=1": ["indices"],
        f"--flagfile={tmp_path / 'bad.flags'}": ["decode"],
        "--workdir=\udcff": ["'--workdir=\\udcff' is not valid UTF-8"],
        "--dry_run=perhaps": ["perhaps"],
        "\n": ["unexpected argument"],
    }
    without_config = {"--config=/tmp", "--config=", "--config=\udcff.py", "--config=a\nb.py"}
    answers = parse([[case] if case in without_config else [config, case] for case in cases])
    for words, answer in zip(cases.values(), answers, strict=True):
        assert_refused(answer, *words)


@pytest.mark.parametrize("seed", [12])
def test_mutated_command_lines_end_in_order(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    tokens = [f"--config={TINY}", f"--config={TINY}", "--config.train.steps=9", f"--workdir={tmp_path}", "--dry_run"]
    signs = "=.:-[]'\"\\\n %{}()@~*,#é0一\udc80"

    def mutated(token: str) -> str:
        letters = list(token)
        for _ in range(rng.randint(0, 3)):
            start = rng.randrange(len(letters) + 1)
            letters[start : start + rng.randint(0, 1)] = rng.choice(signs)
        return "".join(letters)

    lines = [[mutated(token) for token in rng.sample(tokens, rng.randint(1, 4))] for _ in range(200)]
    for line, answer in zip(lines, parse(lines), strict=True):
        if answer.code:
            assert_refused(answer)
        else:
            assert not answer.text, (line, answer)
