"""Writes what commands print into the pages that show them: `python -m launch.recipes [--check]`.

In `docs/launch.md` and `docs/recipes/*.md`, a block of `bash` that is followed by a block of `text` is a recipe: the
second holds all that the first prints. Commands that end with exit code 2 are shown with their sentence. With `--check`
nothing is written, and pages that are out of date are named.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_RECIPE = re.compile(r"```bash\n(?P<command>(?:(?!```).)*?)```\n\n```text\n.*?```", re.DOTALL)


def pages() -> list[Path]:
    """The pages with recipes."""
    return [ROOT / "docs" / "launch.md", *sorted((ROOT / "docs" / "recipes").glob("*.md"))]


def output_of(command: str) -> str:
    """What a block of commands prints, standard error included, in the order in which it came."""
    lines = command.replace("\\\n", " ").splitlines()
    printed = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[:3] != ["python", "-m", "launch"]:
            raise ValueError(f"a recipe runs `python -m launch`, not {line!r}")
        if "--execute" in words:
            raise ValueError(f"a recipe changes nothing, so it has no --execute: {line!r}")
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 2):
            raise ValueError(f"{line!r} ended with exit code {done.returncode}:\n{done.stdout}")
        printed.append(done.stdout.strip("\n"))
    return "\n".join(printed)


def updated(text: str) -> str:
    """A page with what its recipes print now."""
    commands = [match["command"] for match in _RECIPE.finditer(text)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        outputs = iter(list(pool.map(output_of, commands)))

    def recipe(match: re.Match[str]) -> str:
        return f"```bash\n{match['command']}```\n\n```text\n{next(outputs)}\n```"

    return _RECIPE.sub(recipe, text)


def main(arguments: list[str]) -> int:
    """Writes or checks all pages; 1 if one was out of date."""
    stale = []
    for page in pages():
        text = page.read_text()
        now = updated(text)
        if now != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in arguments:
                page.write_text(now)
    print(*(f"{name} {'is out of date' if '--check' in arguments else 'was written'}" for name in stale), sep="\n")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
