"""From the flags of `python -m launch` to a job."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from launch.job import CAPACITIES, Job
from launch.path import LaunchPath
from qwenvl_jax.chips import CHIPS, Topology, parse_topology
from qwenvl_jax.config import FORMER_KEYS, Config, load_config
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError

commandline.define_config("The stage, e.g. configs/stage2_multitask.py.", FORMER_KEYS)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips: v5p:8x8x8, v5p-1024, v6e-256@2 (two slices).")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; on gs:// for all paths but local.")
_NAME = flags.DEFINE_string("name", None, "Of every resource; the last part of --workdir by default.")
_CAPACITY = flags.DEFINE_enum("capacity", "on_demand", CAPACITIES, "How the chips are bought.")
_RESERVATION = flags.DEFINE_string("reservation", "", "Name of the reservation, with --capacity=reserved.")
_HOURS = flags.DEFINE_float("hours", 0.0, "The longest time that the chips are kept; 0: no limit.", lower_bound=0)
_PROJECT = flags.DEFINE_string("project", "", "Cloud project; that of gcloud by default.")
_ZONE = flags.DEFINE_list("zone", [], "Zone, or zones to try in this order, e.g. us-east5-a,us-central1-a.")
_NETWORK = flags.DEFINE_string("network", "", "Network; the project's default otherwise.")
_SUBNETWORK = flags.DEFINE_string("subnetwork", "", "Subnetwork; the network's default otherwise.")
_SERVICE_ACCOUNT = flags.DEFINE_string("service_account", "", "Account of the hosts; the project's default otherwise.")
_INTERNAL = flags.DEFINE_bool("internal_addresses", False, "No external addresses; the network needs Cloud NAT.")
_LABEL = flags.DEFINE_multi_string("label", [], "NAME=VALUE, for every resource; may be repeated.")
_ENV = flags.DEFINE_multi_string("env", [], "NAME=VALUE for every process, nothing secret; may be repeated.")
_SECRET = flags.DEFINE_multi_string(
    "secret", [], "VARIABLE=SECRET: hosts read a secret of Secret Manager into a variable; may be repeated."
)
_REPOSITORY = flags.DEFINE_string("repository", "", "Git address that hosts clone; the working tree otherwise.")
_REVISION = flags.DEFINE_string("revision", "", "Commit of --repository, in full.")
_IMAGE = flags.DEFINE_string("image", "", "Container image, for gke.")
_CLUSTER = flags.DEFINE_string("cluster", "", "GKE cluster, for gke.")
_LOCATION = flags.DEFINE_string("location", "", "Region or zone of the cluster; the region of --zone by default.")
_QUEUE = flags.DEFINE_string("queue", "", "Local queue of Kueue in the cluster, for gke.")
_XPK = flags.DEFINE_bool("xpk", False, "Start pods through XPK, for gke.")
_RESTARTS = flags.DEFINE_integer(
    "restarts", 20, "How often the run is started again after a retryable end, on gke and local.", lower_bound=0
)
_HOST = flags.DEFINE_string("host", "", "Number of the host whose log `logs` follows.")

NO_CHIPS = parse_topology("v5e:1x1")  # of jobs on this machine, which has no topology

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_of_flags(path: LaunchPath, verb: str) -> Job:
    """The job that the flags describe, checked for the path.

    Raises:
      UserError: one sentence about the first flag that is missing or wrong.
    """
    topology = _topology() if path.zoned else NO_CHIPS
    workdir = _required("workdir", _WORKDIR.value, "gs://bucket/runs/stage2_multitask")
    config, overrides, topology = _stage(topology) if path.zoned else (*_stage_as_given(), topology)
    name = _NAME.value or re.sub(r"[^a-z0-9-]+", "-", workdir.rstrip("/").rpartition("/")[2].lower()).strip("-")
    job = Job(
        name=name,
        topology=topology,
        command=("python", "-m", "qwenvl_jax.train", f"--config={config}", f"--workdir={workdir}", *overrides),
        workdir=workdir,
        capacity=_CAPACITY.value,
        reservation=_RESERVATION.value,
        hours=_HOURS.value,
        project=_PROJECT.value,
        zones=tuple(_ZONE.value),
        network=_NETWORK.value,
        subnetwork=_SUBNETWORK.value,
        service_account=_SERVICE_ACCOUNT.value,
        internal_addresses=_INTERNAL.value,
        labels=_named("label", _LABEL.value),
        environment=_variables("env", _ENV.value),
        secrets=_variables("secret", _SECRET.value),
        repository=_REPOSITORY.value,
        revision=_REVISION.value,
        image=_IMAGE.value,
        cluster=_CLUSTER.value,
        location=_LOCATION.value,
        queue=_QUEUE.value,
        xpk=_XPK.value,
        restarts=_RESTARTS.value,
        host=_HOST.value,
    )
    _check(job, path, verb)
    path.check(job)
    return job


def _check(job: Job, path: LaunchPath, verb: str) -> None:
    """Raises UserError for what no path on machines of the cloud accepts."""
    if path.name != "local" and not job.workdir.startswith("gs:"):
        raise UserError(f"the hosts of {path.name} share no disk, so --workdir must be on gs://, not {job.workdir!r}")
    if path.zoned and not job.zones:
        raise UserError("--zone is missing; `python -m launch where --topology=..` lists the zones of a chip")
    if path.zoned and verb != "create" and len(job.zones) > 1:
        raise UserError(f"--zone names {len(job.zones)} zones; name the one in which the chips were created")
    if bool(job.repository) != bool(job.revision):
        raise UserError("--repository and --revision belong together; give both, or neither")
    if job.revision and not re.fullmatch(r"[0-9a-f]{40}", job.revision):
        raise UserError(f"--revision {job.revision!r} is not a commit; give its 40 hexadecimal digits")
    if job.host and not (job.host.isdecimal() and int(job.host) < job.topology.hosts):
        raise UserError(f"--host {job.host!r} is none of the {job.topology.hosts} hosts; give a number from 0 on")
    both = sorted(set(job.environment) & set(job.secrets))
    if both:
        raise UserError(f"the variable {both[0]} is given by --env and by --secret; choose one")


def _required(name: str, value: str | None, example: str) -> str:
    if not value:
        raise UserError(f"--{name} is missing; give it, e.g. --{name}={example}")
    return value


def _topology() -> Topology:
    return parse_topology(_required("topology", _TOPOLOGY.value, "v5p:8x8x8"))


def _stage(topology: Topology) -> tuple[str, list[str], Topology]:
    """The value of `--config` for the hosts, the overrides, and the topology with the slices of the config.

    If the config file has an argument `mesh` that is not given, it becomes the recipe of the chip.
    """
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise UserError("--config is missing; name the stage, e.g. --config=configs/stage2_multitask.py")
    path = str(config_flags.get_config_filename(flag))
    file, _, text = path.partition(":")
    given = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    values: Any = flag.value
    changes = config_flags.get_override_values(flag)
    kind = topology.chip.kind
    if "mesh" in commandline.argument_names(file):
        if "mesh" not in given:
            path = ",".join([f"{file}:mesh={kind}", *filter(None, [text])])
            values = flag.parser.parse(path)
            values.update_from_flattened_dict(changes)
        elif given["mesh"] in CHIPS and given["mesh"] != kind:
            raise UserError(f"the recipe mesh={given['mesh']} is for other chips than {topology.name}; leave it out")
    config = load_config(values)
    overrides = [f"--config.{key}={_text(value)}" for key, value in sorted(changes.items())]
    if topology.slices != config.mesh.slices:
        if config.mesh.slices > 1 and topology.slices > 1:
            raise UserError(
                f"config.mesh.slices is {config.mesh.slices}, but {topology.name} has {topology.slices} slices; leave "
                "config.mesh.slices out"
            )
        if topology.slices == 1:
            topology = dataclasses.replace(topology, slices=config.mesh.slices)
        else:
            overrides.append(f"--config.mesh.slices={topology.slices}")
    _check_mesh(config, topology)
    return path, overrides, topology


def _stage_as_given() -> tuple[str, list[str]]:
    """The value of `--config` and the overrides, for a machine whose devices the config names itself."""
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise UserError("--config is missing; name the stage, e.g. --config=configs/quickstart/stage0_text.py")
    load_config(flag.value)
    changes = config_flags.get_override_values(flag)
    overrides = [f"--config.{key}={_text(value)}" for key, value in sorted(changes.items())]
    return str(config_flags.get_config_filename(flag)), overrides


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _check_mesh(config: Config, topology: Topology) -> None:
    """Raises UserError if the mesh of the config does not fit the devices of a slice."""
    mesh = config.mesh
    devices = topology.devices // topology.slices
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    fixed = math.prod(size for size in sizes if size != -1)
    if devices % fixed if -1 in sizes else devices != fixed:
        raise UserError(
            f"config.mesh (data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}) does not fit the {devices} "
            f"devices of a slice of {topology.name}; set e.g. --config.mesh.fsdp={math.gcd(fixed, devices)}"
        )


def _named(flag: str, entries: Sequence[str]) -> Mapping[str, str]:
    """`NAME=VALUE` entries as a mapping."""
    values: dict[str, str] = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not sign or not name or name in values:
            raise UserError(f"--{flag}={entry!r} must be NAME=VALUE, each name once")
        values[name] = value
    return values


def _variables(flag: str, entries: Sequence[str]) -> Mapping[str, str]:
    """The same with names of environment variables."""
    values = _named(flag, entries)
    for name in values:
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"--{flag} names {name!r}, which is no name of a variable; use letters, digits and _")
    return values
