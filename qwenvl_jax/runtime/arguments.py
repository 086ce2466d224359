"""The argument parser of all commands that have no config file: a mistake is one sentence, not a dump of the usage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from qwenvl_jax.runtime.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Parses the flags of `python -m NAME`, which must be written in full.

    Parse inside `errors.exit_on_user_error`: every mistake raises `UserError`.
    """

    def __init__(self, prog: str, description: str | None):
        """A command.

        Args:
          prog: how the command is started, such as "python -m data_pipelines".
          description: for `--help`, shown as it is.
        """
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As of `argparse`.

        Raises:
          UserError: also if an argument is not valid UTF-8, or a flag has an empty value.
        """
        args = sys.argv[1:] if args is None else list(args)
        for text in args:
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"the argument {text!a} is not valid UTF-8; rename what it names")
        for before, text in zip(["", *args], args, strict=False):
            name = before if not text else text.removesuffix("=")
            if name.startswith("--") and "=" not in name and name != text:
                raise UserError(f"{name} has an empty value; give it one or leave out the flag")
        return super().parse_known_args(args, namespace)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As of `argparse`, but an unknown flag is answered with the nearest one.

        Raises:
          UserError: for arguments that the command does not have.
        """
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            if name.startswith("-"):
                raise UserError(f"unknown flag {name}{nearest(name, self._option_string_actions)}; see --help")
            raise UserError(f"unexpected argument {name!r}; see --help")
        return namespace

    def error(self, message: str) -> NoReturn:
        """Raises UserError, where `argparse` would print the usage and exit."""
        raise UserError(f"{message}; see --help")
