"""Slices of virtual machines by Compute Engine: a workload policy, an instance template, a managed group per slice.

Sources: "Create Cloud TPU VMs with MIGs" (https://docs.cloud.google.com/tpu/docs/tpus-and-migs), "Request TPU Spot VMs"
(https://docs.cloud.google.com/tpu/docs/spot-compute), "Consume a reservation"
(https://docs.cloud.google.com/tpu/docs/consume-reservation-compute). From reports of users: groups of several hosts
need bulk mode, policies and templates are named by full URLs, values are in upper case, the default disk of 10 GB is
too small, without the scope cloud-platform secrets fail after half an hour, and a group replaces machines that are
deleted one by one. Quotas are those of Compute Engine, not of the Cloud TPU API.
"""

from __future__ import annotations

from launch import gcloud, ssh_verbs
from launch.command import Command
from launch.job import Job
from launch.path import LaunchPath
from launch.ssh_verbs import Group
from qwenvl_jax.runtime.errors import UserError

_COMPUTE = ("gcloud", "compute")
_MANAGED = (*_COMPUTE, "instance-groups", "managed")
_HOST = "@HOST@"  # xargs puts the name of an instance there
LONGEST_FLEX_HOURS = 168
DISK_GB = 200


def check(job: Job) -> None:
    """Raises UserError for jobs that Compute Engine cannot run."""
    job.topology.check_rentable()
    if not job.topology.cloud.image_family:
        raise UserError(f"Compute Engine has no {job.topology.chip.kind}; use queued_resource or tpu_vm")
    if not job.project:
        raise UserError("--project is missing; Compute Engine takes policies and templates by URLs that contain it")
    if job.capacity == "flex_start" and job.hours > LONGEST_FLEX_HOURS:
        raise UserError(f"flex-start machines are kept for at most {LONGEST_FLEX_HOURS} hours; lower --hours")
    if _HOST in " ".join((*job.command, *job.environment.values(), *job.preflight, job.repository)):
        raise UserError(f"{_HOST} must not be part of the command; it stands for the name of a host")


def _url(job: Job, kind: str) -> str:
    """The full URL of a regional resource of the job; bare names are refused as malformed."""
    return f"https://www.googleapis.com/compute/v1/projects/{job.project}/regions/{job.region}/{kind}/{job.name}"


def _group_names(job: Job) -> list[str]:
    slices = job.topology.slices
    return [job.name] if slices == 1 else [f"{job.name}-{index}" for index in range(slices)]


def _project(job: Job) -> str:
    return f"--project={job.project}"


def _needs_policy(job: Job) -> bool:
    """A slice of one host needs no policy that joins hosts."""
    return job.topology.hosts_per_slice > 1


def _template_flags(job: Job) -> tuple[str, ...]:
    """How the machines are bought."""
    limit = (f"--max-run-duration={gcloud.seconds(job.hours)}",) if job.hours else ()
    deletion = "--instance-termination-action=DELETE"
    if job.capacity == "spot":
        return ("--provisioning-model=SPOT", "--instance-termination-action=STOP", *limit)
    if job.capacity == "flex_start":
        return ("--provisioning-model=FLEX_START", deletion, *limit, "--reservation-affinity=none")
    if job.capacity == "reserved":
        name = job.reservation if "/" in job.reservation else f"projects/{job.project}/reservations/{job.reservation}"
        affinity = ("--reservation-affinity=specific", f"--reservation={name}")
        return ("--provisioning-model=RESERVATION_BOUND", deletion, *limit, *affinity)
    return ("--provisioning-model=STANDARD", *((deletion, *limit) if limit else ()))


def _host_flags(job: Job) -> tuple[str, ...]:
    flags = []
    if job.network:
        flags.append(f"--network={job.network}")
    if job.subnetwork:
        flags.append(f"--subnet={job.subnetwork}")
    if job.internal_addresses:
        flags.append("--no-address")
    if job.service_account:
        flags.append(f"--service-account={job.service_account}")
    if job.labels:
        flags.append(f"--labels={gcloud.pairs(job.labels)}")
    return tuple(flags)


def create(job: Job) -> list[Command]:
    """Creates policy, template and one group per slice, resizes the groups, and waits until all machines run."""
    commands = [_policy(job)] if _needs_policy(job) else []
    commands.append(_template(job))
    for name in _group_names(job):
        commands += _group_creation(job, name)
    for name in _group_names(job):
        stable = (*_MANAGED, "describe", name, _project(job), f"--zone={job.zone}", "--format=value(status.isStable)")
        why = "Wait until the machines run. That they have booted says nothing of the chips; `setup` checks these."
        commands.append(Command(stable, why, until=("True",)))
    return commands


def _policy(job: Job) -> Command:
    arguments = (
        *(*_COMPUTE, "resource-policies", "create", "workload-policy", job.name, _project(job)),
        *(f"--region={job.region}", "--type=HIGH_THROUGHPUT", f"--accelerator-topology={job.topology.grid}"),
        "--accelerator-topology-mode=AUTO_CONNECT",
    )
    why = f"Describe the slice: {job.topology.hosts_per_slice} machines whose chips form {job.topology.grid}."
    return Command(arguments, why, creates=f"resource-policy/{job.name}", undo=_policy_deletion(job))


def _template(job: Job) -> Command:
    arguments = (
        *(*_COMPUTE, "instance-templates", "create", job.name, _project(job)),
        f"--instance-template-region={job.region}",
        f"--machine-type={job.topology.machine_type}",
        *_template_flags(job),
        "--maintenance-policy=TERMINATE",
        "--image-project=ubuntu-os-accelerator-images",
        f"--image-family={job.topology.cloud.image_family}",
        f"--boot-disk-size={DISK_GB}GB",
        f"--scopes={gcloud.SCOPES}",
        *_host_flags(job),
    )
    why = f"Describe one machine: {job.topology.chips_per_host} chips, how it is bought, image, disk and rights."
    return Command(arguments, why, creates=f"instance-template/{job.name}", undo=_template_deletion(job))


def _group_creation(job: Job, name: str) -> list[Command]:
    policy = ("--target-size-policy-mode=bulk", f"--workload-policy={_url(job, 'resourcePolicies')}")
    arguments = (
        *(*_MANAGED, "create", name, _project(job), f"--zone={job.zone}", "--size=0"),
        f"--template={_url(job, 'instanceTemplates')}",
        *(policy if _needs_policy(job) else ()),
        "--default-action-on-vm-failure=do-nothing",
    )
    why = (
        "Create an empty group that takes all machines of a slice at once or not at all, and repairs nothing by itself."
    )
    make = Command(arguments, why, creates=f"instance-group/{name}", undo=_group_deletion(job, name))
    size = str(job.topology.hosts_per_slice)
    resize = (*_MANAGED, "resize", name, _project(job), f"--zone={job.zone}", f"--size={size}")
    return [make, Command(resize, f"Ask for the {size} machines of the slice; payment begins when they run.")]


def _group_deletion(job: Job, name: str) -> tuple[str, ...]:
    return (*_MANAGED, "delete", name, _project(job), f"--zone={job.zone}", "--quiet")


def _template_deletion(job: Job) -> tuple[str, ...]:
    delete_template = (*_COMPUTE, "instance-templates", "delete", job.name, _project(job))
    return (*delete_template, f"--region={job.region}", "--quiet")


def _policy_deletion(job: Job) -> tuple[str, ...]:
    return (*_COMPUTE, "resource-policies", "delete", job.name, _project(job), f"--region={job.region}", "--quiet")


def delete(job: Job) -> list[Command]:
    """Deletes the groups with their machines, then template and policy."""
    why = "Delete the group with its machines; deleting machines one by one would let the group create them again."
    commands = [
        Command(_group_deletion(job, name), why, deletes=f"instance-group/{name}") for name in _group_names(job)
    ]
    why = "Delete the template, which nothing uses any more."
    commands.append(Command(_template_deletion(job), why, deletes=f"instance-template/{job.name}"))
    if _needs_policy(job):
        why = "Delete the policy, which nothing uses any more."
        commands.append(Command(_policy_deletion(job), why, deletes=f"resource-policy/{job.name}"))
    return commands


def _groups(job: Job) -> list[Group]:
    # All machines at once: those that check each other have to run together.
    each = ("xargs", "-P", str(job.topology.hosts_per_slice), "-I", _HOST)
    iap = ("--tunnel-through-iap",) if job.internal_addresses else ()
    flags = (*iap, _project(job), f"--zone={job.zone}", "--quiet")
    size = job.topology.hosts_per_slice
    made = []
    for index, name in enumerate(_group_names(job)):
        hosts_of = f"all {size} hosts" if size > 1 else "the host"
        what = hosts_of if job.topology.slices == 1 else f"{hosts_of} of slice {index}"
        names = (*_MANAGED, "list-instances", name, _project(job), f"--zone={job.zone}")
        made.append(
            Group(
                what,
                (*each, *_COMPUTE, "ssh", _HOST),
                (*each, *_COMPUTE, "scp"),
                _HOST,
                flags,
                input_from=(*names, "--format=value(instance.basename())"),
                slice_index=index,
            )
        )
    return made


def _slice_of_host(job: Job) -> list[Group]:
    """The slice of a host. Which of its machines is the n-th worker, only that machine knows."""
    return [_groups(job)[int(job.host) // job.topology.hosts_per_slice]]


def _describe(job: Job) -> list[Command]:
    commands = []
    for name in _group_names(job):
        arguments = (*_MANAGED, "list-instances", name, _project(job), f"--zone={job.zone}")
        commands.append(
            Command(
                (*arguments, "--format=value(instance.basename(),instanceStatus,currentAction)"),
                "Show the state of every machine. A spot group that lost one is deleted and created again.",
            )
        )
    return commands


PATH = LaunchPath(
    name="gce",
    summary="slices of v5p, v6e or tpu7x as managed groups of machines (Compute Engine)",
    builders={
        "create": create,
        **ssh_verbs.HostVerbs(_groups, _describe, _slice_of_host, members=True).builders(),
        "delete": delete,
    },
    check=check,
    slices_checked_alone=True,
)
