"""One command of a cloud's command line, as a value: it can be printed, compared with a golden file, or run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Command:
    """A program and its arguments, never a line for a shell.

    Attributes:
      arguments: the program and its arguments, one string each; no secret is among them.
      why: one sentence for the reader of a dry run.
      stdin: the text that the program reads, e.g. a manifest for `kubectl apply --filename=-`; empty for programs that
        read nothing.
      environment: variables that the program gets in addition to those of the launcher.
      creates: the resource that exists after the command, e.g. `tpu-vm/stage1`; empty if it creates nothing.
      undo: the arguments that delete the resource again; empty if it creates nothing.
      accepts: exit codes that count as a success.
    """

    arguments: tuple[str, ...]
    why: str
    stdin: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    creates: str = ""
    undo: tuple[str, ...] = ()
    accepts: tuple[int, ...] = (0,)

    @property
    def shell(self) -> str:
        """The command as a line that a POSIX shell reads back to the same arguments."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        line = " ".join([*variables, *map(shlex.quote, self.arguments)])
        if not self.stdin:
            return line
        end = "END"
        while end in self.stdin.splitlines():
            end += "_"
        text = self.stdin if self.stdin.endswith("\n") else self.stdin + "\n"
        return f"{line} <<'{end}'\n{text}{end}"
