"""Command lines of one main, each in a forked process, so that its imports are paid once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

# Takes a module, one of its functions, code to run at the end of each command, whether they need a config ("" if not),
# and command lines as lines of JSON.
DRIVER = """
import importlib, json, os, signal, sys, traceback
from qwenvl_jax.runtime import commandline

module, function, at_end, needs_config = sys.argv[1:]
main = getattr(importlib.import_module(module), function)
for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(500)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.argv = [module.split(".")[-1], *json.loads(line)]  # config_flags reads this one
        code = 0
        try:
            commandline.run(main, needs_config=bool(needs_config))
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        exec(at_end)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once: an interpreter with JAX takes its time to end
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode(errors="replace")
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]), flush=True)
"""


class Answer(NamedTuple):
    """How one command ended: its exit code, and its output and errors in one text."""

    code: int
    text: str


def run_commands(
    module: str,
    lines: Sequence[Sequence[str]],
    *,
    function: str = "main",
    at_end: str = "",
    needs_config: bool = True,
    environment: Mapping[str, str] | None = None,
) -> list[Answer]:
    """Runs command lines one after the other; the answer to each.

    Args:
      module: of the main, e.g. `qwenvl_jax.train`.
      lines: the arguments of each command.
      function: of that module, as `commandline.run` takes it.
      at_end: Python code that each process runs before it ends.
      needs_config: as the module passes it to `commandline.run`.
      environment: variables in addition to those of this process.
    """
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, module, function, at_end, "yes" if needs_config else ""],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        input="".join(json.dumps(list(line)) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [Answer(*json.loads(line)) for line in run.stdout.splitlines()]
    assert len(answers) == len(lines), run.stderr
    return answers


def assert_refused(answer: Answer, *words: str) -> None:
    """The command ended with one sentence that has these words, and exit code 2."""
    assert answer.code == 2 and answer.text.startswith("error: ") and answer.text.count("\n") == 1, answer
    for word in words:
        assert word in answer.text, answer
