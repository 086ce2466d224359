"""What the commands of the paths on virtual machines share: flags of every call, and lines that run on the hosts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from launch.job import Job

SCOPES = "https://www.googleapis.com/auth/cloud-platform"


def scope(job: Job) -> tuple[str, ...]:
    """The flags that say where a resource is."""
    project = (f"--project={job.project}",) if job.project else ()
    return (*project, f"--zone={job.zone}")


def pairs(values: Mapping[str, str]) -> str:
    """`name=value,name=value`, as gcloud reads labels and metadata.

    Values with a comma get another delimiter, by the rule of `gcloud topic escaping`.
    """
    texts = [f"{name}={value}" for name, value in sorted(values.items())]
    joined = "".join(texts)
    if "," not in joined:
        return ",".join(texts)
    delimiter = next(sign for sign in ":;|#%~@" if sign not in joined)
    return f"^{delimiter}^{delimiter.join(texts)}"


def folder(job: Job) -> str:
    """The folder of a job on a host, relative to the home directory; it holds source, environment, state and log."""
    return f"launch/{job.name}"


def on_host(job: Job, *arguments: str) -> str:
    """A line for the shell of a host that runs the repository's Python on arguments, in its source folder.

    It is quoted for that shell; printing the command that carries it quotes it once more for the shell here.
    """
    return f"cd {shlex.quote(folder(job))}/source && {shlex.join(('../venv/bin/python', *arguments))}"
