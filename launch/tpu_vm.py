"""One slice of TPU VMs by the Cloud TPU API: `gcloud compute tpus tpu-vm`.

Source of the flags: https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/create. The API is frozen: new
chips exist on Compute Engine and GKE only.
"""

from __future__ import annotations

from launch import gcloud, ssh_verbs
from launch.command import Command
from launch.job import Job
from launch.path import LaunchPath
from launch.ssh_verbs import Group
from qwenvl_jax.runtime.errors import UserError

_TPU_VM = ("gcloud", "compute", "tpus", "tpu-vm")


def check(job: Job) -> None:
    """Raises UserError for jobs that this API cannot run."""
    check_chip(job)
    if job.topology.slices > 1:
        raise UserError(
            f"tpu_vm creates one slice, not {job.topology.slices}; use queued_resource, or gce for newer chips"
        )
    if job.capacity == "flex_start":
        raise UserError("tpu_vm has no flex-start; use queued_resource or gce")
    if job.capacity == "reserved":
        raise UserError("tpu_vm cannot name a reservation; use queued_resource or gce")
    if job.hours:
        raise UserError("tpu_vm keeps a slice until it is deleted; leave --hours out, or use gce")


def check_chip(job: Job) -> None:
    """Raises UserError if the Cloud TPU API does not have the chip or the grid."""
    job.topology.check_rentable()
    if not job.topology.cloud.runtime:
        raise UserError(f"the Cloud TPU API does not have {job.topology.chip.kind}; use gce or gke")


def slice_flags(job: Job) -> tuple[str, ...]:
    """The flags that name the chips of one slice."""
    topology = job.topology
    if topology.accelerator_type:
        return (f"--accelerator-type={topology.accelerator_type}",)
    return (f"--type={topology.cloud.api_type}", f"--topology={topology.grid}")


def host_flags(job: Job) -> tuple[str, ...]:
    """The flags for network, account and labels of the hosts."""
    flags = []
    if job.network:
        flags.append(f"--network={job.network}")
    if job.subnetwork:
        flags.append(f"--subnetwork={job.subnetwork}")
    if job.internal_addresses:
        flags.append("--internal-ips")
    if job.service_account:
        flags.append(f"--service-account={job.service_account}")
    if job.labels:
        flags.append(f"--labels={gcloud.pairs(job.labels)}")
    return tuple(flags)


def create(job: Job) -> list[Command]:
    """Creates the slice; the command returns when its hosts are up."""
    delete_it = (*_TPU_VM, "delete", job.name, *gcloud.scope(job), "--quiet")
    arguments = (
        *(*_TPU_VM, "create", job.name, *gcloud.scope(job)),
        *slice_flags(job),
        f"--version={job.topology.cloud.runtime}",
        *(("--spot",) if job.capacity == "spot" else ()),
        *host_flags(job),
        f"--scopes={gcloud.SCOPES}",
        "--quiet",
    )
    why = f"Create one slice of {job.topology.chips} chips; the command returns when its hosts are up."
    return [Command(arguments, why, creates=f"tpu-vm/{job.name}", undo=delete_it)]


def delete(job: Job) -> list[Command]:
    """Deletes the slice."""
    arguments = (*_TPU_VM, "delete", job.name, *gcloud.scope(job), "--quiet")
    why = "Give the slice back; checkpoints and logs in the workdir stay."
    return [Command(arguments, why, deletes=f"tpu-vm/{job.name}")]


def _groups(job: Job, worker: str = "all") -> list[Group]:
    flags = (
        f"--worker={worker}",
        *(("--internal-ip",) if job.internal_addresses else ()),
        *gcloud.scope(job),
        "--quiet",
    )
    what = f"all {job.topology.hosts} hosts" if job.topology.hosts > 1 else "the host"
    return [Group(what, (*_TPU_VM, "ssh", job.name), (*_TPU_VM, "scp"), job.name, flags)]


def _one_host(job: Job) -> list[Group]:
    return _groups(job, worker=job.host)


def _describe(job: Job) -> list[Command]:
    arguments = (*_TPU_VM, "describe", job.name, *gcloud.scope(job), "--format=value(state,health)")
    return [Command(arguments, "Show the state of the slice: READY, or PREEMPTED if a spot slice was taken away.")]


PATH = LaunchPath(
    name="tpu_vm",
    summary="one slice of v4, v5e, v5p or v6e, at once or not at all (Cloud TPU API)",
    builders={"create": create, **ssh_verbs.HostVerbs(_groups, _describe, _one_host).builders(), "delete": delete},
    check=check,
)
