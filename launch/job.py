"""What is launched: one stage, on one topology, bought in one way. Builders turn a `Job` into commands."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from qwenvl_jax.chips import Topology
from qwenvl_jax.runtime.errors import UserError

# How chips are bought. On demand and reserved slices stay; spot slices may be taken away at any moment; flex-start
# slices come when there is room and stay for `Job.hours` at most.
CAPACITIES = ("on_demand", "spot", "reserved", "flex_start")

# Compute Engine allows 63 characters. JobSet and Kueue put their parts before and behind the name of a job, so that 28
# remain on GKE.
LONGEST_NAME = 28
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# What the cloud calls its resources: names, addresses of accounts and images, paths such as projects/P/reservations/R.
# None begins with a hyphen, so none is taken for a flag.
_CLOUD_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./:@]*")
_NAMED_IN_THE_CLOUD = (
    *("reservation", "project", "network", "subnetwork", "service_account", "image", "cluster", "location", "queue"),
)
# Labels that Compute Engine and Kubernetes both take.
_LABEL = re.compile(r"[a-z][-a-z0-9_]{0,61}[a-z0-9]|[a-z]")
_LABEL_VALUE = re.compile(r"([a-z0-9]([-a-z0-9_]{0,61}[a-z0-9])?)?")
# Compute Engine keeps machines with a limit for 120 days at most.
SHORTEST_HOURS, LONGEST_HOURS = 1 / 60, 120 * 24


@dataclasses.dataclass(frozen=True)
class Job:
    """One stage on one topology.

    Attributes:
      name: of every resource that is created; a DNS label.
      topology: chip kind, grid and number of slices.
      command: what every host runs, e.g. ("python", "-m", "qwenvl_jax.train", "--config=..", "--workdir=..").
      workdir: the run's folder, on gs:// for all paths but `local`.
      local: the folder of local checkpoints on every host, empty for none.
      capacity: one of `CAPACITIES`.
      reservation: its name, if the capacity is `reserved`.
      hours: the longest time that the slices are kept; required for flex-start, 0 for no limit.
      project: the cloud project; empty for the one that gcloud is set to.
      zones: in which to try, in this order.
      network, subnetwork, service_account: empty for the project's defaults.
      internal_addresses: whether hosts get no external addresses; the network then needs Cloud NAT.
      labels: of every resource.
      environment: variables of every process; no secrets.
      secrets: names of secrets of Secret Manager by variable. A host reads them itself when it starts.
      repository, revision: what `setup` installs; an empty repository sends the launcher's working tree.
      image: the container image, for GKE.
      cluster, location: the GKE cluster, and its region or zone; an empty location is the region of the zone.
      queue: of Kueue in the cluster; empty for none.
      xpk: whether GKE is asked through XPK.
      restarts: how often a run is started again after a retryable end, on GKE and on this machine.
      host: whose log `logs` follows, a number from 0 on; empty for the last lines of all hosts.
      follows: whether another run, that of the stage before, may still be ending on the same machines; it waits for it.
      preflight: arguments of the check that `setup` ends with, e.g. ("python", "-m", "qwenvl_jax.preflight", ..); empty
        for no check.
    """

    name: str
    topology: Topology
    command: tuple[str, ...]
    workdir: str
    local: str = ""
    capacity: str = "on_demand"
    reservation: str = ""
    hours: float = 0.0
    project: str = ""
    zones: tuple[str, ...] = ()
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    internal_addresses: bool = False
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repository: str = ""
    revision: str = ""
    image: str = ""
    cluster: str = ""
    location: str = ""
    queue: str = ""
    xpk: bool = False
    restarts: int = 20
    host: str = ""
    follows: bool = False
    preflight: tuple[str, ...] = ()

    @property
    def zone(self) -> str:
        """The zone in which builders create and look for resources: the first."""
        return self.zones[0] if self.zones else ""

    @property
    def region(self) -> str:
        """The region of the zone, e.g. `us-east5` of `us-east5-a`."""
        return self.zone.rpartition("-")[0]

    def in_zone(self, zone: str) -> Job:
        """The same job in one zone."""
        return dataclasses.replace(self, zones=(zone,))

    def __post_init__(self) -> None:
        """Raises UserError for values that no path accepts."""
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            raise UserError(
                f"the name {self.name!r} is not a DNS label of at most {LONGEST_NAME} characters; give --name, with "
                "lower-case letters, digits and hyphens, beginning with a letter"
            )
        if self.capacity not in CAPACITIES:
            raise UserError(f"the capacity {self.capacity!r} is not one of {', '.join(CAPACITIES)}; choose one")
        if (self.capacity == "reserved") != bool(self.reservation):
            raise UserError("--reservation and --capacity=reserved belong together; give both, or neither")
        if self.capacity == "flex_start" and self.hours <= 0:
            raise UserError("flex-start slices are kept for a limited time; give --hours, e.g. --hours=24")
        if self.hours and not SHORTEST_HOURS <= self.hours <= LONGEST_HOURS:
            raise UserError(f"--hours={self.hours:g} must be 0 or from a minute to {LONGEST_HOURS} hours; change it")
        self._check_names()

    def _check_names(self) -> None:
        """Raises UserError for names that no resource of a cloud has."""
        named = [(field, getattr(self, field)) for field in _NAMED_IN_THE_CLOUD]
        named += [("zone", zone) for zone in self.zones]
        named += [(f"secret={variable}", secret) for variable, secret in self.secrets.items()]
        for flag, value in named:
            if value and not _CLOUD_NAME.fullmatch(value):
                raise UserError(
                    f"--{flag}={value!r} is no name of the cloud; write letters, digits and any of - _ . / : @, "
                    "beginning with a letter or a digit"
                )
        for name, value in self.labels.items():
            if not (_LABEL.fullmatch(name) and _LABEL_VALUE.fullmatch(value)):
                raise UserError(
                    f"--label={name}={value!r} is no label of the cloud; write lower-case letters, digits, hyphens and "
                    "underscores, at most 63 each, with letters or digits at both ends"
                )
