"""Node pools and a JobSet on a GKE cluster: `gcloud container`, `kubectl`, or XPK with `--xpk`.

Sources: https://cloud.google.com/sdk/gcloud/reference/container/node-pools/create,
https://jobset.sigs.k8s.io/docs/tasks/tpu_multislice/, https://github.com/AI-Hypercomputer/xpk. The cluster, with JobSet
installed, and the container image exist already. Pods use the network and the service account of their nodes.
"""

from __future__ import annotations

import dataclasses
import posixpath
import shlex

from launch import gcloud, jobset
from launch.command import Command
from launch.job import Job
from launch.path import LaunchPath
from qwenvl_jax.runtime.errors import UserError

LONGEST_FLEX_HOURS = 168
_POOLS = ("gcloud", "container", "node-pools")


def check(job: Job) -> None:
    """Raises UserError for jobs that GKE cannot run."""
    job.topology.check_rentable()
    for flag, value in (("cluster", job.cluster), ("project", job.project), ("image", job.image)):
        if not value:
            raise UserError(f"--{flag} is missing; gke needs --cluster, --project and --image")
    regions = {zone.rpartition("-")[0] for zone in job.zones}
    if len(regions) > 1:
        raise UserError(
            f"a cluster has nodes in one region, but the zones are in {', '.join(sorted(regions))}; give --zone, or "
            "several zones of the cluster's region"
        )
    if job.topology.slices > 1 and job.topology.hosts_per_slice == 1:
        raise UserError(
            f"GKE joins slices of several machines only, and a slice of {job.topology.name} is one machine; take a "
            "larger grid, or one slice"
        )
    if job.xpk and not job.topology.accelerator_type:
        raise UserError(
            f"XPK names slices by accelerator types, and none names the grid {job.topology.grid}; leave --xpk out"
        )
    if job.xpk and job.follows:
        raise UserError("stages asks kubectl whether a stage has ended; leave --xpk out")
    if job.xpk and job.secrets:
        raise UserError("XPK would put the values of --secret on its command line; leave out --xpk or --secret")
    if job.local and not _is_node_folder(job.local):
        raise UserError(
            f"config.checkpoint.local is {job.local!r}, which a pod cannot mount from its node; give a folder such as "
            "/dev/shm/checkpoints, without .. and :"
        )
    if job.local and job.xpk:
        raise UserError(
            "XPK mounts no folder of the node, so a new pod would find no local checkpoint; leave out --xpk or "
            "config.checkpoint.local"
        )
    if job.hours and job.capacity != "flex_start":
        raise UserError("--hours limits flex-start nodes only on gke; leave it out, or use gce")
    if job.capacity == "flex_start" and job.hours > LONGEST_FLEX_HOURS:
        raise UserError(f"flex-start nodes are kept for at most {LONGEST_FLEX_HOURS} hours; lower --hours")
    names: dict[str, str] = {}
    for variable in job.secrets:
        name = jobset.secret_name(job, variable)
        if name.endswith(".") or name in names:
            others = f"that of {names[name]}" if name in names else "no name in the cluster"
            raise UserError(f"the secret for the variable {variable} would have {others}; rename the variable")
        names[name] = variable
    jobset.manifest(job)


def _is_node_folder(path: str) -> bool:
    """Whether Kubernetes mounts it: absolute, normal, not the node's root, and not the memory that every pod has."""
    whole = posixpath.normpath(path) == path and path.startswith("/") and ":" not in path
    return whole and path.strip("/") not in ("", "dev/shm")


def location(job: Job) -> str:
    """The region or zone of the cluster."""
    return job.location or job.region


def create(job: Job) -> list[Command]:
    """Creates a node pool per slice."""
    return [_create_pool(job, index) for index in range(job.topology.slices)]


def setup(job: Job) -> list[Command]:
    """Gives kubectl the cluster's address, and pods their secrets."""
    credentials = (
        *("gcloud", "container", "clusters", "get-credentials", job.cluster),
        *_where(job),
    )
    commands = [Command(credentials, "Let kubectl talk to the cluster.")]
    for variable, secret in sorted(job.secrets.items()):
        name = jobset.secret_name(job, variable)
        read = ("gcloud", "secrets", "versions", "access", "latest", f"--secret={secret}", f"--project={job.project}")
        write = (*_kubectl(job), "create", "secret", "generic", name, "--from-file=value=/dev/stdin")
        delete_old = (*_kubectl(job), "delete", "secret", name, "--ignore-not-found")
        commands.append(Command(delete_old, f"Forget an earlier value of {variable}."))
        commands.append(
            Command(
                write,
                f"Copy the secret {secret} to the cluster, through a pipe; pods read it as {variable}.",
                input_from=read,
                creates=f"secret/{name}",
                undo=delete_old,
            )
        )
    return commands


def run(job: Job) -> list[Command]:
    """Starts the training."""
    if job.xpk:
        return [_xpk_create(job)]
    why = "Remove the job set of the stage before; one that is active writes a checkpoint and ends."
    before = [dataclasses.replace(_forgiving(stop(job)[0]), why=why)] if job.follows else []
    return [
        *before,
        Command(
            (*_kubectl(job), "create", "--filename=-"),
            f"Start {job.topology.hosts} pods, one per machine; an existing job set of this name is left alone.",
            stdin=jobset.text(job),
            creates=f"jobset/{job.name}",
            undo=(*_kubectl(job), "delete", "jobset", job.name, "--ignore-not-found"),
        ),
    ]


def wait(job: Job) -> Command:
    """Waits for the end of a run. An answer that does not come is no end."""
    state = "jsonpath={.status.terminalState}"
    return Command(
        (*_kubectl(job), "get", "jobset", job.name, "--ignore-not-found", f"--output={state}"),
        "Wait until all pods have finished, or the job set has failed.",
        accepts=(0, 1),
        until=("Completed",),
        unless=("Failed",),
        advice="`python -m launch gke logs` shows why; mend that and run the same command again",
    )


def logs(job: Job) -> list[Command]:
    """Shows the last lines of every pod, or follows one."""
    selector = f"jobset.sigs.k8s.io/jobset-name={job.name}"
    if not job.host:
        arguments = (*_kubectl(job), "logs", f"--selector={selector}", "--prefix", "--tail=20")
        return [
            Command((*arguments, f"--max-log-requests={job.topology.hosts}"), "Show the last lines of every pod's log.")
        ]
    of_slice, pod = divmod(int(job.host), job.topology.hosts_per_slice)
    selector += f",jobset.sigs.k8s.io/job-index={of_slice},batch.kubernetes.io/job-completion-index={pod}"
    arguments = (*_kubectl(job), "logs", f"--selector={selector}", "--follow", "--tail=100")
    return [Command(arguments, f"Follow the log of pod {pod} of slice {of_slice}; Ctrl-C ends it.")]


def status(job: Job) -> list[Command]:
    """Shows the node pools, the job set and its pods."""
    pools = (*_POOLS, "list", *_cluster(job), f"--filter=name:{job.name}-*", "--format=table(name,status)")
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
    return [
        Command(pools, "Show the node pools."),
        Command(
            (*_kubectl(job), "get", "jobset", job.name, "--ignore-not-found"), "Show the job set and its restarts."
        ),
        Command((*_kubectl(job), "get", "pods", selector, "--output=wide"), "Show the pods and their nodes."),
    ]


def stop(job: Job) -> list[Command]:
    """Lets the run write a checkpoint and end."""
    if job.xpk:
        return [_xpk_delete(job)]
    arguments = (*_kubectl(job), "delete", "jobset", job.name, "--wait", f"--timeout={jobset.GRACE_SECONDS + 60}s")
    why = f"Send SIGTERM to every pod: the run writes a checkpoint and ends, within {jobset.GRACE_SECONDS} s."
    return [Command(arguments, why)]


def delete(job: Job) -> list[Command]:
    """Deletes the job set and the node pools."""
    end = _xpk_delete(job) if job.xpk else _forgiving(stop(job)[0])
    secrets = [
        Command(
            (*_kubectl(job), "delete", "secret", jobset.secret_name(job, variable), "--ignore-not-found"),
            f"Delete the copy of the secret for {variable}.",
        )
        for variable in sorted(job.secrets)
    ]
    pools = [
        Command(
            (*_POOLS, "delete", _pool(job, index), *_cluster(job), "--quiet"),
            f"Give slice {index} back.",
            deletes=f"node-pool/{_pool(job, index)}",
        )
        for index in range(job.topology.slices)
    ]
    return [end, *secrets, *pools]


def _forgiving(command: Command) -> Command:
    """A deletion by kubectl that succeeds if nothing is there."""
    return Command((*command.arguments, "--ignore-not-found"), command.why)


def _create_pool(job: Job, index: int) -> Command:
    topology = job.topology
    name = _pool(job, index)
    nodes = topology.hosts_per_slice
    capacity: tuple[str, ...] = (f"--num-nodes={nodes}",)
    if job.capacity == "spot":
        capacity = (*capacity, "--spot")
    if job.capacity == "reserved":
        capacity = (*capacity, "--reservation-affinity=specific", f"--reservation={job.reservation}")
    if job.capacity == "flex_start":
        # Nodes come when a pod asks for them, and are not repaired: a repair would break the slice.
        capacity = (
            *("--flex-start", "--enable-autoscaling", "--num-nodes=0", "--min-nodes=0", f"--max-nodes={nodes}"),
            *("--location-policy=ANY", "--reservation-affinity=none", "--no-enable-autorepair"),
            f"--max-run-duration={round(job.hours * 3600)}s",
            *(("--enable-queued-provisioning",) if job.queue else ()),
        )
    arguments = (
        *(*_POOLS, "create", name, *_cluster(job)),
        f"--node-locations={job.zone}",
        f"--machine-type={topology.machine_type}",
        *((f"--tpu-topology={topology.grid}",) if nodes > 1 else ()),
        *capacity,
        f"--scopes={gcloud.SCOPES}",
        *((f"--service-account={job.service_account}",) if job.service_account else ()),
        *((f"--labels={gcloud.pairs(job.labels)}",) if job.labels else ()),
        "--quiet",
    )
    machines = f"{nodes} machine" + "s" * (nodes > 1)
    return Command(
        arguments,
        f"Create slice {index}: a node pool of {machines}.",
        creates=f"node-pool/{name}",
        undo=(*_POOLS, "delete", name, *_cluster(job), "--quiet"),
    )


def _xpk_create(job: Job) -> Command:
    capacity: dict[str, tuple[str, ...]] = {
        "on_demand": ("--on-demand",),
        "spot": ("--spot",),
        "reserved": (f"--reservation={job.reservation}",),
        "flex_start": (),  # the cluster's node pools decide; a workload has no such flag
    }
    variables = {"QWENVL_JOIN_SECONDS": str(jobset.JOIN_SECONDS), **job.environment}
    arguments = (
        *("xpk", "workload", "create", f"--workload={job.name}", *_xpk_cluster(job)),
        f"--tpu-type={job.topology.accelerator_type}",
        f"--num-slices={job.topology.slices}",
        f"--docker-image={job.image}",
        f"--max-restarts={job.restarts}",
        f"--termination-grace-period-seconds={jobset.GRACE_SECONDS}",
        *capacity[job.capacity],
        *(f"--env={name}={value}" for name, value in variables.items()),
        f"--command={shlex.join(job.command)}",
    )
    why = "Start the training through XPK, which restarts it after the exit codes 42 and 127 to 255."
    return Command(arguments, why, creates=f"workload/{job.name}", undo=_xpk_delete(job).arguments)


def _xpk_delete(job: Job) -> Command:
    arguments = ("xpk", "workload", "delete", f"--workload={job.name}", *_xpk_cluster(job), "--force")
    return Command(arguments, "End the workload; the run writes a checkpoint first.")


def _xpk_cluster(job: Job) -> tuple[str, ...]:
    return (f"--cluster={job.cluster}", f"--project={job.project}", f"--zone={job.zone}")


def _where(job: Job) -> tuple[str, ...]:
    return (f"--project={job.project}", f"--location={location(job)}")


def _cluster(job: Job) -> tuple[str, ...]:
    return (f"--cluster={job.cluster}", *_where(job))


def _kubectl(job: Job) -> tuple[str, ...]:
    """kubectl with the cluster named, so that no command reaches the one that happens to be selected."""
    return ("kubectl", f"--context=gke_{job.project}_{location(job)}_{job.cluster}")


def _pool(job: Job, index: int) -> str:
    return f"{job.name}-{index}"


PATH = LaunchPath(
    name="gke",
    summary="slices of any chip as pods of a GKE cluster, restarted by JobSet after preemptions",
    builders={
        "create": create,
        "setup": setup,
        "run": run,
        "logs": logs,
        "status": status,
        "stop": stop,
        "delete": delete,
    },
    check=check,
    wait=wait,
)
