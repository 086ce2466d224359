"""One command of a cloud's command line, as a value: it can be printed, compared with a golden file, or run."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import string
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Command:
    """A program and its arguments, never a line for a shell.

    Attributes:
      arguments: the program and its arguments, one string each; no secret is among them.
      why: one sentence for the reader of a dry run.
      stdin: the text that the program reads, e.g. a manifest for `kubectl apply --filename=-`; empty for programs that
        read nothing.
      input_from: the arguments of another program, whose output this one reads as in a pipeline; empty for no pipeline.
      environment: variables that the program gets in addition to those of the launcher.
      creates: the resource that exists after the command, e.g. `tpu-vm/stage1`; empty if it creates nothing.
      undo: the arguments that delete the resource again; empty if it creates nothing.
      deletes: the resource that does not exist after the command, e.g. `tpu-vm/stage1`; empty if it deletes nothing.
      accepts: exit codes that count as a success.
      until: the program is run again and again until its output, without white space at the ends, is one of these;
        empty for programs that are run once.
      unless: outputs that end the waiting with a failure.
      advice: what to do then.
    """

    arguments: tuple[str, ...]
    why: str
    stdin: str = ""
    input_from: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    creates: str = ""
    undo: tuple[str, ...] = ()
    deletes: str = ""
    accepts: tuple[int, ...] = (0,)
    until: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    advice: str = "delete the resource and create it again"

    @property
    def shell(self) -> str:
        """The command as text that a POSIX shell runs with the same arguments, the same input and the same waiting."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        line = " ".join([*variables, *map(shlex.quote, self.arguments)])
        if self.input_from:
            line = f"{shlex.join(self.input_from)} | {line}"
        if self.until:
            wanted = "|".join(map(shlex.quote, self.until))
            unwanted = f" {'|'.join(map(shlex.quote, self.unless))}) exit 1;;" if self.unless else ""
            return f'( while :; do case "$({line})" in {wanted}) exit 0;;{unwanted} esac; sleep 30; done )'
        if not self.stdin:
            return line
        end = _end_mark(self.stdin)
        text = self.stdin if self.stdin.endswith("\n") else self.stdin + "\n"
        return f"{line} <<'{end}'\n{text}{end}"


def _end_mark(text: str) -> str:
    """A line that ends a text for a shell.

    dash (0.5.12) spoils lines that begin as the end mark does and go on with a letter that is not ASCII.
    """
    lines = text.splitlines()

    def fits(mark: str) -> bool:
        beginnings = [mark[:length] for length in range(1, len(mark) + 1)]
        spoiled = any(
            line.startswith(beginning) and not line[len(beginning) :][:1].isascii()
            for line in lines
            for beginning in beginnings
        )
        return mark not in lines and not spoiled

    others = map("".join, itertools.product(string.ascii_uppercase, repeat=3))
    return next(filter(fits, itertools.chain(["END"], others)))
