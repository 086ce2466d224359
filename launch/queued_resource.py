"""Slices that the Cloud TPU API grants when there is room: `gcloud compute tpus queued-resources`.

Sources: https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create, and its alpha version for
flex-start and named reservations; states in https://docs.cloud.google.com/tpu/docs/queued-resources. The API is frozen:
new chips exist on Compute Engine and GKE only.
"""

from __future__ import annotations

from launch import gcloud, ssh_verbs
from launch.command import Command
from launch.job import Job
from launch.path import LaunchPath
from launch.ssh_verbs import Group
from launch.tpu_vm import check_chip, host_flags, slice_flags
from qwenvl_jax.runtime.errors import UserError

_QUEUED: tuple[str, ...] = ("gcloud", "compute", "tpus", "queued-resources")
_ALPHA: tuple[str, ...] = ("gcloud", "alpha", "compute", "tpus", "queued-resources")
LONGEST_FLEX_HOURS = 168


def check(job: Job) -> None:
    """Raises UserError for jobs that this API cannot run."""
    check_chip(job)
    if job.capacity == "flex_start" and job.topology.chip.kind not in ("v5e", "v5p", "v6e"):
        raise UserError(f"flex-start has no {job.topology.chip.kind}; take another capacity")
    if job.capacity == "flex_start" and job.hours > LONGEST_FLEX_HOURS:
        raise UserError(f"flex-start slices are kept for at most {LONGEST_FLEX_HOURS} hours; lower --hours")
    if job.capacity != "flex_start" and job.hours:
        raise UserError("--hours limits flex-start slices only on this path; leave it out, or use gce")


def create(job: Job) -> list[Command]:
    """Queues the request and waits until all slices are there."""
    slices = job.topology.slices
    nodes = (f"--node-id={job.name}",) if slices == 1 else (f"--node-count={slices}", f"--node-prefix={job.name}")
    capacity: tuple[str, ...] = ()
    program = _QUEUED
    if job.capacity == "spot":
        capacity = ("--spot",)
    elif job.capacity == "reserved":
        program = _ALPHA
        capacity = (f"--reservation={job.reservation}",)
    elif job.capacity == "flex_start":
        program = _ALPHA
        capacity = ("--provisioning-model=flex-start", f"--max-run-duration={gcloud.seconds(job.hours)}")
    arguments = (
        *(*program, "create", job.name, *gcloud.scope(job)),
        *nodes,
        *slice_flags(job),
        f"--runtime-version={job.topology.cloud.runtime}",
        *capacity,
        *host_flags(job),
        f"--scopes={gcloud.SCOPES}",
        "--quiet",
    )
    chips = job.topology.chips // slices
    what = f"one slice of {chips} chips" if slices == 1 else f"{slices} slices of {chips} chips at once"
    ask = Command(
        arguments,
        f"Ask for {what}; nothing is paid for while the request waits.",
        creates=f"queued-resource/{job.name}",
        undo=_deletion(job),
    )
    describe = (*_QUEUED, "describe", job.name, *gcloud.scope(job), "--format=value(state.state)")
    wait = Command(
        describe,
        "Wait until the slices are there, which may take days; Ctrl-C ends the waiting, not the request.",
        until=("ACTIVE",),
        unless=("FAILED", "SUSPENDING", "SUSPENDED", "DELETING"),
    )
    return [ask, wait]


def _deletion(job: Job) -> tuple[str, ...]:
    return (*_QUEUED, "delete", job.name, *gcloud.scope(job), "--force", "--quiet")


def delete(job: Job) -> list[Command]:
    """Deletes the request with its slices."""
    why = "Give the slices back with the request (--force deletes both); checkpoints and logs in the workdir stay."
    return [Command(_deletion(job), why, deletes=f"queued-resource/{job.name}")]


def _group(job: Job, node: str, worker: str, what: str) -> Group:
    flags = (
        *(f"--node={node}", f"--worker={worker}", "--batch-size=all"),
        *(("--tunnel-through-iap",) if job.internal_addresses else ()),
        *(*gcloud.scope(job), "--quiet"),
    )
    return Group(what, (*_QUEUED, "ssh", job.name), (*_QUEUED, "scp"), job.name, flags)


def _groups(job: Job) -> list[Group]:
    what = f"all {job.topology.hosts} hosts" if job.topology.hosts > 1 else "the host"
    return [_group(job, "all", "all", what)]


def _one_host(job: Job) -> list[Group]:
    node, worker = divmod(int(job.host), job.topology.hosts_per_slice)
    return [_group(job, str(node), str(worker), f"host {job.host}")]


def _describe(job: Job) -> list[Command]:
    arguments = (*_QUEUED, "describe", job.name, *gcloud.scope(job), "--format=value(state.state)")
    why = (
        "Show the state of the request: ACTIVE, or SUSPENDED if spot slices were taken away (delete and create again)."
    )
    return [Command(arguments, why)]


PATH = LaunchPath(
    name="queued_resource",
    summary="slices of v4, v5e, v5p or v6e when there is room, several at once (Cloud TPU API)",
    builders={"create": create, **ssh_verbs.HostVerbs(_groups, _describe, _one_host).builders(), "delete": delete},
    check=check,
)
