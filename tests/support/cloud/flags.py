"""Parses command lines as gcloud does: unknown flags and values are refused before anything else happens."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping

from tests.support.cloud.world import Refusal

# Flags of every command (`gcloud help` calls them GCLOUD WIDE FLAGS, and those of lists).
_WIDE = (
    "project format verbosity account configuration impersonate-service-account billing-project flags-file flatten "
    "trace-token access-token-file filter limit page-size sort-by"
)
WIDE_SWITCHES = {"quiet", "help", "log-http", "user-output-enabled", "uri"}
_SEARCH = "\n\nTo search the help text of gcloud commands, run:\n  gcloud help -- SEARCH_TERMS"


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one command takes.

    Attributes:
      positional: the name of its positional arguments; empty if it takes none.
      many: whether there may be several of them.
      values: flags with a value, separated by spaces.
      switches: flags without one.
      required: flags that must be there.
      choices: the values that a flag may have.
      exclusive: groups of flags of which at most one may be there.
      remainder: whether arguments after ` -- ` are allowed.
    """

    positional: str = ""
    many: bool = False
    values: str = ""
    switches: str = ""
    required: str = ""
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    exclusive: tuple[str, ...] = ()
    remainder: bool = False


@dataclasses.dataclass
class Parsed:
    """A command line: positional arguments, flags, and what follows ` -- `."""

    command: str  # with dots
    names: list[str]
    flags: dict[str, str]
    remainder: list[str]

    @property
    def name(self) -> str:
        return self.names[0]

    def get(self, flag: str, default: str = "") -> str:
        return self.flags.get(flag, default)

    def has(self, flag: str) -> bool:
        return flag in self.flags

    def pairs(self, flag: str) -> dict[str, str]:
        """The value of a flag as KEY=VALUE,..; `^@^` at its beginning names another separator."""
        return key_values(self.get(flag))

    def refuse(self, text: str, code: int = 1) -> Refusal:
        """The error of this command."""
        return Refusal(f"ERROR: (gcloud.{self.command}) {text}", code)


def key_values(text: str) -> dict[str, str]:
    """`a=b,c=d` as a dictionary, with gcloud's way of naming another separator."""
    separator = ","
    if other := re.match(r"\^([^^]+)\^", text):
        separator = other[1]
        text = text[other.end() :]
    return dict(part.split("=", 1) for part in text.split(separator) if part)


def split(arguments: list[str], commands: Mapping[str, Spec]) -> tuple[str, list[str]]:
    """The longest known command that the arguments begin with, and the rest."""
    names: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or ".".join(names) in commands:
            break
        names.append(argument)
        known = ".".join(names)
        if not any(command == known or command.startswith(known + ".") for command in commands):
            parent = "".join(f".{name}" for name in names[:-1])
            raise Refusal(f"ERROR: (gcloud{parent}) Invalid choice: '{argument}'.{_SEARCH}", 2)
    command = ".".join(names)
    if command not in commands:
        raise Refusal(f"ERROR: (gcloud.{command}) Command name argument expected.", 2)
    return command, arguments[len(names) :]


def parse(command: str, arguments: list[str], spec: Spec) -> Parsed:
    """Reads flags and positional arguments.

    Raises:
      Refusal: with gcloud's own words and exit code 2.
    """
    parsed = Parsed(command, [], {}, [])
    values = {*spec.values.split(), *_WIDE.split()}
    switches = set(spec.switches.split()) | WIDE_SWITCHES
    unknown = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            parsed.remainder = queue
            break
        if not argument.startswith("-") or argument == "-":
            parsed.names.append(argument)
            continue
        name, has_value, value = argument.removeprefix("--").partition("=")
        if argument == "-q":
            name = "quiet"
        if name in values:
            if not has_value:
                if not queue or queue[0].startswith("--"):
                    raise parsed.refuse(f"argument --{name}: expected one argument", 2)
                value = queue.pop(0)
            parsed.flags[name] = value
        elif name in switches and (not has_value or value in ("true", "false")):
            parsed.flags[name] = value or "true"
        elif name.removeprefix("no-") in switches and not has_value:
            parsed.flags[name.removeprefix("no-")] = "false"
        elif name in switches:
            raise parsed.refuse(f"argument --{name}: ignored explicit argument '{value}'", 2)
        else:
            unknown.append(argument)
    for name in [name for name, value in parsed.flags.items() if name in switches and value == "false"]:
        del parsed.flags[name]
    _check(parsed, spec, unknown, values | switches)
    return parsed


def _check(parsed: Parsed, spec: Spec, unknown: list[str], known: set[str]) -> None:
    limit = 0 if not spec.positional else 10**6 if spec.many else 1
    unknown += parsed.names[limit:]
    if parsed.remainder and not spec.remainder:
        unknown += parsed.remainder
    if unknown:
        lines = []
        for argument in unknown:
            flag = argument.removeprefix("--").partition("=")[0]
            close = difflib.get_close_matches(flag, known, n=1) if argument.startswith("--") else []
            lines.append(f"  {argument}" + (f" (did you mean '--{close[0]}'?)" if close else ""))
        joined = lines[0].strip() if len(lines) == 1 else "\n" + "\n".join(lines)
        raise parsed.refuse(f"unrecognized arguments: {joined}{_SEARCH}", 2)
    for flag, choices in spec.choices.items():
        value = parsed.get(flag, choices[0])
        if value not in choices:
            raise parsed.refuse(
                f"argument --{flag}: Invalid choice: '{value}'.\n\nValid choices are [{', '.join(sorted(choices))}].", 2
            )
    if spec.positional and not parsed.names:
        raise parsed.refuse(f"argument {spec.positional}: Must be specified.", 2)
    for flag in spec.required.split():
        if flag not in parsed.flags:
            raise parsed.refuse(f"argument --{flag}: Must be specified.", 2)
    for group in spec.exclusive:
        given = [flag for flag in group.split() if flag in parsed.flags]
        if len(given) > 1:
            raise parsed.refuse(
                f"argument --{given[0]}: At most one of {' | '.join('--' + flag for flag in group.split())} can be "
                "specified.",
                2,
            )
