"""Writes what commands print into the pages that show them: `python -m launch.recipes [--check]`.

In `docs/launch.md` and `docs/recipes/*.md`, a block of `bash` that is followed by a block of `text` is a recipe: the
second holds all that the first prints. Every command succeeds, except on the page of mistakes, where every one ends
with exit code 2 and its sentence. With `--check` nothing is written, and pages that are out of date are named.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

ROOT = Path(__file__).parents[1]
MISTAKES = ROOT / "docs" / "recipes" / "mistakes.md"
_RECIPE = re.compile(r"```bash\n(?P<command>(?:(?!```).)*?)```\n\n```text\n.*?```", re.DOTALL)


def pages() -> list[Path]:
    """The pages with recipes."""
    return [ROOT / "docs" / "launch.md", *sorted((ROOT / "docs" / "recipes").glob("*.md"))]


def output_of(command: str, code: int = exit_codes.FINISHED) -> str:
    """What a block of commands prints, standard error included, in the order in which it came.

    Args:
      command: lines for a shell; each runs `python -m launch`.
      code: the exit code with which each of them has to end.

    Raises:
      UserError: for another command or exit code.
    """
    lines = command.replace("\\\n", " ").splitlines()
    printed = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[:3] != ["python", "-m", "launch"]:
            raise UserError(f"a recipe runs `python -m launch`, not {line!r}; show others without a block of text")
        if "--execute" in words:
            raise UserError(f"a recipe changes nothing, but {line!r} has --execute; leave it out")
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != code:
            said = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise UserError(
                f"{line!r} ended with exit code {done.returncode} instead of {code} ({said}); correct it, or show it "
                f"in {'another page' if code else MISTAKES.name}"
            )
        printed.append(done.stdout.strip("\n"))
    return "\n".join(printed)


def updated(text: str, code: int = exit_codes.FINISHED) -> str:
    """A page with what its recipes print now; see `output_of`."""
    commands = [match["command"] for match in _RECIPE.finditer(text)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        outputs = iter(list(pool.map(lambda command: output_of(command, code), commands)))

    def recipe(match: re.Match[str]) -> str:
        return f"```bash\n{match['command']}```\n\n```text\n{next(outputs)}\n```"

    return _RECIPE.sub(recipe, text)


def main(*, check: bool) -> int:
    """Writes or checks all pages; 1 if one was out of date."""
    stale = []
    for page in pages():
        text = page.read_text()
        now = updated(text, exit_codes.MISTAKE if page == MISTAKES else exit_codes.FINISHED)
        if now != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(now)
    print(*(f"{name} {'is out of date' if check else 'was written'}" for name in stale), sep="\n")
    return int(bool(stale) and check)


if __name__ == "__main__":
    parser = Parser("python -m launch.recipes", __doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; name the pages that are out of date.")
    with exit_on_user_error():
        sys.exit(main(check=parser.parse_args().check))
