"""Runs commands, one after another, and says what each does."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from launch.command import Command
from qwenvl_jax.runtime.errors import UserError

WAIT_SECONDS = 30.0


def run(commands: Sequence[Command]) -> None:
    """Runs commands until one fails.

    Raises:
      UserError: if a program is missing or fails.
    """
    for command in commands:
        print(f"# {command.why}\n{command.shell}", flush=True)
        while not _done(command):
            time.sleep(WAIT_SECONDS)


def _done(command: Command) -> bool:
    """Runs the command once; whether it need not be run again."""
    program = command.arguments[0]
    environment = {**os.environ, **command.environment}
    try:
        text: str | None = command.stdin or None
        if command.input_from:
            source = subprocess.run(command.input_from, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            if source.returncode:
                raise UserError(f"{command.input_from[0]} ended with exit code {source.returncode}; see its message")
            text = source.stdout
        ended = subprocess.run(
            command.arguments,
            env=environment,
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE if command.until else None,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            f"the program {program!r} is not installed; install it, or run the printed commands elsewhere"
        ) from None
    if ended.returncode not in command.accepts:
        raise UserError(f"{program} ended with exit code {ended.returncode}; see its message above")
    if not command.until:
        return True
    state = (ended.stdout or "").strip()
    if state in command.unless:
        raise UserError(f"{program} reports {state}; delete the resource and create it again")
    return state in command.until
