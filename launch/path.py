"""What a path to the cloud is: builders by verb, and the check that refuses a job before anything is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from launch.command import Command
from launch.job import Job

VERBS = {
    "create": "rent the chips",
    "setup": "install the code on every host and check it",
    "run": "start the training on every host, detached from this terminal",
    "logs": "show the log of all hosts, or follow that of one",
    "status": "show the state of the resources and of the run on every host",
    "stop": "let the run write a checkpoint and end; the chips stay rented",
    "delete": "give the chips back",
}

Builder = Callable[[Job], list[Command]]


@dataclasses.dataclass(frozen=True)
class LaunchPath:
    """One way to bring a job to chips.

    Attributes:
      name: on the command line.
      summary: one line for `python -m launch --help`.
      builders: by verb, in the order of `VERBS`. They are pure: neither a program is called nor a file read.
      check: raises UserError, one sentence, for a job that the path cannot launch; called before any builder.
      wait: the command that waits for the end of a run; None if its workdir alone shows it.
      zoned: whether a job needs a zone.
      slices_checked_alone: whether one command of `setup` reaches one slice only, which is then checked by itself.
      replaces: whether the only command of a verb takes the launcher's process over with `--execute`, so that signals
        reach it and its exit code is that of the launcher.
    """

    name: str
    summary: str
    builders: Mapping[str, Builder]
    check: Callable[[Job], None]
    wait: Callable[[Job], Command] | None = None
    zoned: bool = True
    slices_checked_alone: bool = False
    replaces: bool = False
