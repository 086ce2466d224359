"""What the commands of the paths on virtual machines share: flags of every call."""

from __future__ import annotations

from collections.abc import Mapping

from launch.job import Job

SCOPES = "https://www.googleapis.com/auth/cloud-platform"


def scope(job: Job) -> tuple[str, ...]:
    """The flags that say where a resource is."""
    project = (f"--project={job.project}",) if job.project else ()
    return (*project, f"--zone={job.zone}")


def pairs(values: Mapping[str, str]) -> str:
    """`name=value,name=value`, as gcloud reads labels."""
    return ",".join(f"{name}={value}" for name, value in sorted(values.items()))


def seconds(hours: float) -> str:
    """A duration as gcloud reads it, e.g. `86400s`."""
    return f"{round(hours * 3600)}s"
