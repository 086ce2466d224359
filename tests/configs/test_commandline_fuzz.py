"""Command lines and config files that nobody means: one sentence and exit code 2, or they are taken as they are."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "support" / "tiny_config.py"

# Reads lists of arguments as JSON lines; a forked process parses each and reads its config.
DRIVER = """
import json, os, signal, sys, traceback
from qwenvl_jax import train
from qwenvl_jax.runtime import commandline

def main():
    train.read_config()

for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.argv = ["train", *json.loads(line)]
        code = 0
        try:
            commandline.run(main)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)  # at once: an interpreter with JAX takes its time to end
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode(errors="replace")
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]), flush=True)
"""


def parse(lines: list[list[str]]) -> list[tuple[int, str]]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    command = [sys.executable, "-c", DRIVER]
    run = subprocess.run(command, cwd=ROOT, env=environment, input=text, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == len(lines), run.stderr
    return [(code, text) for code, text in found]


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
    "own": (b"class Own(BaseException): pass\nraise Own('no')", "Own: no"),
    "lines": (b"raise KeyError('a\\nb')", "KeyError: 'a"),
    "asserts": (b"assert False", "AssertionError"),
    "imports": (b"import nothing_there", "No module named 'nothing_there'"),
    "no argument": (b"def get_config(): return {}", "lacks the key"),
    "strange": (b"def get_config(): return {'model': 3, 'data': None}", "config"),
}


def assert_one_sentence(code: int, text: str, *words: str) -> None:
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1, (code, text)
    for word in words:
        assert word in text


def test_a_config_file_that_raises_anything_is_one_sentence(tmp_path: Path) -> None:
    lines = []
    for name, (body, _) in FILES.items():
        (tmp_path / f"{name}.py").write_bytes(body)
        lines.append([f"--config={tmp_path / name}.py"])
    for (code, text), (_, words) in zip(parse(lines), FILES.values(), strict=True):
        assert_one_sentence(code, text, words)


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
    own = {"--config=/tmp", "--config=", "--config=\udcff.py", "--config=a\nb.py"}
    found = parse([[case] if case in own else [config, case] for case in cases])
    for (case, words), (code, text) in zip(cases.items(), found, strict=True):
        print(repr(case), text)
        assert_one_sentence(code, text, *words)


@pytest.mark.parametrize("seed", [12])
def test_mutated_command_lines_end_in_order(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    tokens = [f"--config={TINY}", f"--config={TINY}", "--config.train.steps=9", f"--workdir={tmp_path}", "--dry_run"]
    signs = "=.:-[]'\"\\\n %{}()@~*,#é0一\udc80"

    def mutated(token: str) -> str:
        letters = list(token)
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(letters) + 1)
            letters[place : place + rng.randint(0, 1)] = rng.choice(signs)
        return "".join(letters)

    lines = [[mutated(token) for token in rng.sample(tokens, rng.randint(1, 4))] for _ in range(200)]
    for line, (code, text) in zip(lines, parse(lines), strict=True):
        if code:
            assert code == 2 and text.startswith("error: ") and text.count("\n") == 1, (line, code, text)
        else:
            assert not text, (line, text)
