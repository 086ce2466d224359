"""From the flags of `python -m launch` to a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from launch import stage_config, zones
from launch.job import CAPACITIES, Job
from launch.path import LaunchPath
from launch.stage_config import StageConfig
from launch.stages import Stage, files
from launch.where import Pace, read_pace
from qwenvl_jax.chips import Topology, parse_topology
from qwenvl_jax.config import FORMER_KEYS
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError

commandline.define_config("The stage, e.g. configs/stage2_multitask.py.", FORMER_KEYS)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips: v5p:8x8x8, v5p-1024, v6e-256@2 (two slices).")
_BENCHMARKS = flags.DEFINE_string("benchmarks", "", "What the run is asked while it trains, as for the training.")
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
    "restarts",
    20,
    "How often the run is started again after a retryable end, on gke and local.",
    lower_bound=0,
    upper_bound=2**31 - 1,  # an int32 in a JobSet
)
_HOST = flags.DEFINE_string("host", "", "Number of the host whose log `logs` follows.")

NO_CHIPS = parse_topology("v5e:1x1")  # of jobs on this machine, which has no topology

_PREFLIGHT = flags.DEFINE_bool("preflight", True, "End `setup` with the check of all hosts together.")
_PRICES = flags.DEFINE_string("prices", "", 'JSON file of dollars per chip and hour, e.g. {"v5p/us-east5/spot": 1.5}.')
_PLAN = flags.DEFINE_string("plan", "", "Output of `python -m qwenvl_jax.plan .. --json`, for where.")
_SAMPLES_PER_STEP = flags.DEFINE_float("samples_per_step", 0.0, "For where; by default from --config.", lower_bound=0)
_CONFIG_DIR = flags.DEFINE_string("config_dir", "configs", "Folder of stageN_NAME.py, for stages.")
_STAGES = flags.DEFINE_string("stages", "1-3", "Numbers of the stages, for stages.")
_RUNS = flags.DEFINE_string("runs", "", "Folder of all workdirs, for stages.")
_DATA = flags.DEFINE_string("data", "", "Folder of the records, for stages.")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REPOSITORY_ADDRESS = re.compile(r"[^-\s]\S*")  # git would take one that begins with a hyphen for an option
# Orbax and TensorStore read the other characters as patterns (qwenvl_jax/checkpoint/steps.py).
_BUCKET_FOLDER = re.compile(r"gs://[a-z0-9][-a-z0-9_.]*(/(?!\.\.?(/|$))[^/*?#\[\]\\\x00-\x1f\x7f]+)*")

_MACHINES = ("tpu_vm", "queued_resource", "gce")
_CLOUD = (*_MACHINES, "gke")
_TAKEN_BY = {  # flags that not every path has, and those that have them
    **dict.fromkeys(("topology", "capacity", "reservation", "hours", "project", "zone", "service_account"), _CLOUD),
    **dict.fromkeys(("label", "secret", "host"), _CLOUD),
    **dict.fromkeys(("network", "subnetwork", "internal_addresses", "repository", "revision"), _MACHINES),
    **dict.fromkeys(("image", "cluster", "location", "queue", "xpk"), ("gke",)),
    "restarts": ("gke", "local"),
    **dict.fromkeys(("processes", "devices"), ("local",)),
}


def job_of_flags(path: LaunchPath, verb: str) -> Job:
    """The job that the flags describe, checked for the path.

    Raises:
      UserError: one sentence about the first flag that is missing or wrong.
    """
    topology = _topology() if path.zoned else NO_CHIPS
    workdir = _required("workdir", _WORKDIR.value, "gs://bucket/runs/stage2_multitask")
    workdir = workdir.rstrip("/") or workdir
    argument, changes = _config()
    stage = stage_config.read(argument, changes, topology, fit=path.zoned)
    if _BENCHMARKS.value:
        commandline.config_of(_BENCHMARKS.value)
        stage = stage._replace(benchmarks=_BENCHMARKS.value)
    return _job(path, verb, stage, workdir, _NAME.value or (name_of(workdir) if path.zoned else path.name))


def name_of(workdir: str) -> str:
    """A name for the resources of a run: the last part of its workdir as a DNS label."""
    return re.sub(r"[^a-z0-9-]+", "-", workdir.rstrip("/").rpartition("/")[2].lower()).strip("-")


def stages_of_flags(path: LaunchPath) -> tuple[list[Stage], str]:
    """The stages that the flags of `launch stages` describe, checked for the path, without their hand-offs.

    Returns:
      The stages, with the one before the first chosen one if there is any; and the name of the first chosen one.

    Raises:
      UserError: as `job_of_flags`.
    """
    topology = _topology() if path.zoned else NO_CHIPS
    runs = _required("runs", _RUNS.value, "gs://bucket/runs").rstrip("/")
    numbers = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", _STAGES.value)
    if not numbers:
        raise UserError(f"--stages={_STAGES.value} must be a number or a range such as 1-3")
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    stages = []
    chosen = files(_CONFIG_DIR.value, first, last)
    before = [file for file in files(_CONFIG_DIR.value, 0, last) if file not in chosen]
    for file in [*before[-1:], *chosen]:
        known = {"runs": runs, "data": _DATA.value}
        names = commandline.argument_names(str(file))
        arguments = [f"{name}={value}" for name, value in known.items() if value and name in names]
        argument = f"{file}:{','.join(arguments)}" if arguments else str(file)
        stage = stage_config.read(argument, {}, topology, fit=path.zoned)
        workdir = f"{runs}/{file.stem}"
        job = _job(path, "run", stage, workdir, _required("name", _NAME.value, "qwen-vl"), follows=True)
        stages.append(Stage(file.stem, stage.config, job))
    return stages, chosen[0].stem


def topology_and_prices() -> tuple[Topology, zones.Prices]:
    """`--topology` and `--prices`, for commands that need nothing else."""
    return _topology(), zones.read_prices(_PRICES.value)


def pace_of_flags() -> Pace | None:
    """The pace of `--plan`, if it is given; the samples per step are those of the config, unless they are given.

    Without records nobody knows how many samples a row holds. As in a dry run, it is one per image of the budget.
    """
    samples = _SAMPLES_PER_STEP.value
    if not samples and _PLAN.value and flags.FLAGS["config"].value is not None:
        argument, changes = _config()
        data = stage_config.read(argument, changes, _topology()).config.data
        samples = data.rows_per_step * max(data.images_per_row, 1.0)
    return read_pace(_PLAN.value, samples)


def _config() -> tuple[str, Mapping[str, Any]]:
    """The value of `--config` and what the command line overrides."""
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise UserError("--config is missing; name the stage, e.g. --config=configs/stage2_multitask.py")
    return str(config_flags.get_config_filename(flag)), config_flags.get_override_values(flag)


def _zones(path: LaunchPath, verb: str, kind: str) -> tuple[str, ...]:
    """`--zone`; without it, a new slice is asked for in all zones with a known price, the cheapest first."""
    if any(_ZONE.value) or not path.zoned:
        return tuple(dict.fromkeys(filter(None, (zone.strip() for zone in _ZONE.value))))
    if verb != "create":
        raise UserError("--zone is missing; name the zone in which the chips were created")
    prices = zones.read_prices(_PRICES.value)
    ordered = zones.by_price(kind, _CAPACITY.value, prices)
    known = [zone for zone in ordered if zones.price(kind, zone, "on_demand", prices) is not None]
    return tuple(known or ordered)


def _job(path: LaunchPath, verb: str, stage: StageConfig, workdir: str, name: str, *, follows: bool = False) -> Job:
    """The job of a stage with all other flags, checked."""
    slices = 1 if path.slices_checked_alone else stage.topology.slices
    job = Job(
        name=name,
        topology=stage.topology,
        command=stage.command(workdir),
        workdir=workdir,
        local=stage.config.checkpoint.local,
        capacity=_CAPACITY.value,
        reservation=_RESERVATION.value,
        hours=_HOURS.value,
        project=_PROJECT.value,
        zones=_zones(path, verb, stage.topology.chip.kind),
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
        follows=follows,
        host=_HOST.value.lstrip("0") or _HOST.value[:1],
        preflight=stage.preflight(workdir, slices=slices) if _PREFLIGHT.value else (),
    )
    _check(job, path, verb)
    path.check(job)
    return job


def _check(job: Job, path: LaunchPath, verb: str) -> None:
    """Raises UserError for what no path on machines of the cloud accepts."""
    _check_flags(path)
    if path.name != "local" and not _BUCKET_FOLDER.fullmatch(job.workdir):
        raise UserError(
            f"the hosts of {path.name} share no disk, so --workdir must be gs://BUCKET/FOLDER without * ? # [ ] \\ .. "
            f"and line breaks, not {job.workdir!r}"
        )
    if path.zoned and verb != "create" and len(job.zones) > 1:
        raise UserError(f"--zone names {len(job.zones)} zones; name the one in which the chips were created")
    if bool(job.repository) != bool(job.revision):
        raise UserError("--repository and --revision belong together; give both, or neither")
    if job.revision and not re.fullmatch(r"[0-9a-f]{40}", job.revision):
        raise UserError(f"--revision {job.revision!r} is not a commit; give its 40 hexadecimal digits")
    if job.repository and not _REPOSITORY_ADDRESS.fullmatch(job.repository):
        raise UserError(
            f"--repository={job.repository!r} is no address that git can clone; write e.g. https://host/name.git"
        )
    if job.host and not (re.fullmatch("[0-9]{1,7}", job.host) and int(job.host) < job.topology.hosts):
        raise UserError(f"--host {job.host!r} is none of the {job.topology.hosts} hosts; give a number from 0 on")
    both = sorted(set(job.environment) & set(job.secrets))
    if both:
        raise UserError(f"the variable {both[0]} is given by --env and by --secret; choose one")


def _check_flags(path: LaunchPath) -> None:
    """Raises UserError for a flag that the path would ignore."""
    for name, takers in _TAKEN_BY.items():
        if path.name not in takers and flags.FLAGS[name].present:
            raise UserError(f"--{name} means nothing on {path.name}; leave it out, or use {' or '.join(takers)}")


def _required(name: str, value: str | None, example: str) -> str:
    if not value:
        raise UserError(f"--{name} is missing; give it, e.g. --{name}={example}")
    return value


def _topology() -> Topology:
    return parse_topology(_required("topology", _TOPOLOGY.value, "v5p:8x8x8"))


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
