"""The verbs that work on the hosts of a job through ssh: setup, run, logs, status, stop.

The paths on virtual machines differ in how hosts are reached, not in what is done there, so each gives its groups of
hosts and gets these builders.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from typing import NamedTuple

from launch.command import Command
from launch.gce_metadata import ADDRESS
from launch.job import Job
from launch.path import Builder

STOP_SECONDS = 900  # a checkpoint of 9.6B parameters with its moments takes a few minutes


class Group(NamedTuple):
    """Hosts that one command reaches.

    Attributes:
      what: the hosts in words, e.g. "all 128 hosts".
      ssh: the arguments of the command up to the line that the hosts run.
      copy: the arguments that copy a file to the home folder of the hosts, up to source and target.
      target: the host in a target, before the colon.
      flags: the flags of both.
      input_from: see `Command`.
      slice_index: of the slice, for paths on which a host does not know that itself.
    """

    what: str
    ssh: tuple[str, ...]
    copy: tuple[str, ...]
    target: str
    flags: tuple[str, ...]
    input_from: tuple[str, ...] = ()
    slice_index: int = 0

    def command(self, line: str, why: str) -> Command:
        """Runs a line on the hosts; it is quoted for the shell there."""
        return Command((*self.ssh, *self.flags, f"--command={line}"), why, input_from=self.input_from)

    def copying(self, file: str, name: str, why: str) -> Command:
        """Copies a file to the home folders of the hosts."""
        arguments = (*self.copy, file, f"{self.target}:{name}", *self.flags)
        return Command(arguments, why, input_from=self.input_from)


Groups = Callable[[Job], list[Group]]


def folder(job: Job) -> str:
    """The folder of a job on a host, relative to the home folder: source, environment, state and log."""
    return f"launch/{job.name}"


def line_on_host(job: Job, *arguments: str) -> str:
    """A line for the shell of a host that runs the repository's Python on arguments, in the source folder.

    It is quoted for that shell; printing the command that carries it quotes it once more for the shell here.
    """
    return f"cd {folder(job)}/source && {shlex.join(('../venv/bin/python', *arguments))}"


@dataclasses.dataclass(frozen=True)
class HostVerbs:
    """The builders of all verbs but create and delete.

    Attributes:
      groups: all hosts of a job.
      describe: commands that show the state of the resources.
      one_host: the host `job.host`; with `members`, the slice that it is in.
      members: whether hosts have to find the numbers of their processes themselves (`launch/gce_metadata.py`).
    """

    groups: Groups
    describe: Builder
    one_host: Groups
    members: bool = False

    def builders(self) -> dict[str, Builder]:
        """The builders by verb."""
        return {
            "setup": self.setup,
            "run": self.run,
            "logs": self.logs,
            "status": self.status,
            "stop": self.stop,
        }

    def setup(self, job: Job) -> list[Command]:
        """Brings the source to every host, installs its requirements, and checks the hosts together."""
        commands = [] if job.repository else [_packing(job)]
        for group in self.groups(job):
            if not job.repository:
                name = f"{job.name}-source.tar.gz"
                commands.append(group.copying(_archive(job), name, f"Copy the archive to {group.what}."))
            why = f"Unpack it on {group.what} and install its requirements."
            if job.repository:
                why = f"Clone the repository on {group.what} and install its requirements."
            commands.append(group.command(_installing(job), why))
        if job.preflight:
            # One command reaches one slice where hosts find their numbers themselves; it checks that slice alone.
            slices = 1 if self.members else job.topology.slices
            for group in self.groups(job):
                flags = self._process_flags(job, 0, slices)
                line = line_on_host(
                    job, "-m", "launch.host", "once", f"--workdir={job.workdir}", *flags, "--", *job.preflight
                )
                why = f"Check {group.what} together: chips, collectives, disk, bucket, clocks, versions."
                commands.append(group.command(line, why))
        return commands

    def run(self, job: Job) -> list[Command]:
        """Starts the training on every host."""
        commands = []
        if self.members and job.topology.slices > 1:
            stale = ("gcloud", "storage", "rm", "--quiet", f"{job.workdir}/{ADDRESS}")
            why = "Forget the address of an earlier run; the first host of the first slice leaves its own there."
            commands.append(Command(stale, why, accepts=(0, 1)))
        for group in self.groups(job):
            flags = self._process_flags(job, group.slice_index, job.topology.slices)
            if job.follows:
                flags = (*flags, "--follows")
            line = line_on_host(
                job, "-m", "launch.host", "start", f"--workdir={job.workdir}", *flags, "--", *job.command
            )
            why = f"Start the training on {group.what}; it goes on after this terminal is closed."
            commands.append(group.command(line, why))
        return commands

    def logs(self, job: Job) -> list[Command]:
        """Shows the last lines of all logs, or follows that of one host."""
        log = f"{folder(job)}/log.txt"
        if job.host:
            why = f"Follow the log of host {job.host}; Ctrl-C ends the following, not the run."
            follow = f"tail --lines=200 --follow=name {log}"
            if self.members:
                worker = int(job.host) % job.topology.hosts_per_slice
                follow = line_on_host(job, "-m", "launch.host", "follow", f"--worker={worker}")
            return [group.command(follow, why) for group in self.one_host(job)]
        why = "Show the last lines of the log of {}; all of it is also in the workdir, below logs/."
        named = f'tail --lines=20 {log} | sed "s/^/$(hostname): /"'
        return [group.command(named, why.format(group.what)) for group in self.groups(job)]

    def status(self, job: Job) -> list[Command]:
        """Shows the state of the resources and of the run."""
        line = line_on_host(job, "-m", "launch.host", "status")
        why = "Show the state of the run on {}."
        return [*self.describe(job), *(group.command(line, why.format(group.what)) for group in self.groups(job))]

    def stop(self, job: Job) -> list[Command]:
        """Stops the run after a checkpoint."""
        line = line_on_host(job, "-m", "launch.host", "stop", f"--seconds={STOP_SECONDS}")
        why = "Send SIGTERM to the run on {} and wait until it has written a checkpoint and ended."
        return [group.command(line, why.format(group.what)) for group in self.groups(job)]

    def _process_flags(self, job: Job, slice_index: int, slices: int) -> tuple[str, ...]:
        """The flags of `launch.host` for variables, secrets and, if hosts do not know them, the members of the run."""
        return (
            *(f"--env={name}={value}" for name, value in sorted(job.environment.items())),
            *(f"--secret={name}={secret}" for name, secret in sorted(job.secrets.items())),
            *((f"--members={slice_index}/{slices}",) if self.members else ()),
        )


def _archive(job: Job) -> str:
    return f"/tmp/{job.name}-source.tar.gz"


def _packing(job: Job) -> Command:
    why = "Pack the working tree: what git tracks or does not ignore, with its commit in REVISION."
    return Command(("python", "-m", "launch.source", _archive(job)), why)


def _installing(job: Job) -> str:
    """The line that brings the source to a host and installs its requirements."""
    new = f"{folder(job)}/source.new"
    install = f"bash {new}/launch/setup_host.sh"
    if job.repository:
        return (
            f"mkdir -p {folder(job)} && rm -rf {new} && git clone --quiet -- {shlex.quote(job.repository)} {new} && "
            f"git -C {new} checkout --quiet --detach {job.revision} && "
            f"git -C {new} rev-parse HEAD > {new}/REVISION && {install}"
        )
    return f"rm -rf {new} && mkdir -p {new} && tar -xzf {job.name}-source.tar.gz -C {new} && {install}"
