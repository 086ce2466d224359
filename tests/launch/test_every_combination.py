"""The pretended cloud takes the commands of every path for every chip and every way to buy it, or we refuse the job."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence

import pytest

from launch.command import Command
from launch.job import CAPACITIES, Job
from launch.paths import PATHS
from qwenvl_jax.chips import CHIPS, parse_topology
from qwenvl_jax.runtime.errors import UserError
from tests.support.cloud import gcloud
from tests.support.cloud.flags import parse, split
from tests.support.cloud.gcloud_commands import COMMANDS
from tests.support.cloud.pretended import PretendedCloud

ZONES = {
    "v4": "us-central2-b",
    "v5e": "us-central1-a",
    "v5p": "us-east5-a",
    "v6e": "us-east5-b",
    "tpu7x": "us-central1-c",
}
GRIDS = {"v4": "2x2x2", "v5e": "4x4", "v5p": "2x2x2", "v6e": "4x4", "tpu7x": "2x2x2"}
ON_MACHINES = [name for name, path in PATHS.items() if path.zoned]
# What the Cloud TPU API has of each chip, and Compute Engine, by the documentation of November 2026.
NEVER = {
    *(("tpu_vm", "tpu7x", capacity) for capacity in CAPACITIES),
    *(("queued_resource", "tpu7x", capacity) for capacity in CAPACITIES),
    *(("gce", chip, capacity) for chip in ("v4", "v5e") for capacity in CAPACITIES),
    *(("tpu_vm", chip, capacity) for chip in CHIPS for capacity in ("reserved", "flex_start")),
    ("queued_resource", "v4", "flex_start"),
}


def a_job(chip: str, capacity: str, slices: int) -> Job:
    return Job(
        name="stage1",
        topology=parse_topology(f"{chip}:{GRIDS[chip]}" + (f"@{slices}" if slices > 1 else "")),
        command=("python", "-m", "qwenvl_jax.train"),
        workdir="gs://bucket/stage1",
        capacity=capacity,
        reservation="r1" if capacity == "reserved" else "",
        hours=24.0 if capacity == "flex_start" else 0.0,
        project="a-project",
        zones=(ZONES[chip],),
        service_account="runs@a-project.iam.gserviceaccount.com",
        labels={"team": "vision", "cost": "a-1"},
        environment={"A": "b, c='d'"},
        secrets={"KEY": "key"},
        cluster="pods",
        image="image:1",
    )


def call(command: Command) -> None:
    """Runs a command of gcloud in this process."""
    for _ in range(1000):
        output = io.StringIO()
        errors = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = gcloud.main(list(command.arguments[1:]))
        assert code in command.accepts, (command.shell, errors.getvalue())
        assert output.getvalue().strip() not in command.unless or not command.until
        if not command.until or output.getvalue().strip() in command.until:
            return
    raise AssertionError(f"{command.shell} never says {command.until}")


def call_all(commands: Sequence[Command]) -> None:
    for command in commands:
        if command.arguments[0] == "gcloud":
            call(command)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ON_MACHINES)
def test_what_is_not_refused_can_be_created_and_deleted(cloud: PretendedCloud, name: str, chip: str) -> None:
    cloud.set(
        clusters={"pods": ZONES[chip].rpartition("-")[0]},
        reservations=["r1"],
        seconds={"wait": 0, "provision": 0, "boot": 0},
    )
    path = PATHS[name]
    for capacity, slices in itertools.product(CAPACITIES, (1, 2)):
        job = a_job(chip, capacity, slices)
        if (name, chip, capacity) in NEVER or (name == "tpu_vm" and slices > 1):
            with pytest.raises(UserError):
                path.check(job)
            continue
        path.check(job)
        call_all(path.builders["create"](job))
        assert cloud.resources(), (capacity, slices)
        call_all([command for command in path.builders["delete"](job) if "kubectl" not in command.arguments])
        assert not cloud.resources(), (capacity, slices)


@pytest.mark.parametrize("name", ON_MACHINES)
def test_every_verb_uses_flags_that_gcloud_knows(name: str) -> None:
    path = PATHS[name]
    for verb, host in (*((verb, "") for verb in path.builders), ("logs", "1")):
        job = a_job("v5p", "spot", 1)
        job = Job(**{**vars(job), "host": host, "preflight": ("python", "-m", "qwenvl_jax.preflight")})
        for command in path.builders[verb](job):
            for arguments in (command.arguments, command.input_from, command.undo):
                if "gcloud" in arguments:
                    dotted, rest = split(list(arguments[arguments.index("gcloud") + 1 :]), COMMANDS)
                    parse(dotted, rest, COMMANDS[dotted])


def test_resources_of_others_stay(cloud: PretendedCloud) -> None:
    """Creating and deleting one job leaves a second one as it is, on every path."""
    cloud.set(clusters={"pods": "us-east5"}, seconds={"wait": 0, "provision": 0, "boot": 0})
    for name in ON_MACHINES:
        other = Job(**{**vars(a_job("v5p", "spot", 1)), "name": "other"})
        call_all(PATHS[name].builders["create"](other))
        before = set(cloud.resources())
        job = a_job("v5p", "spot", 1)
        call_all(PATHS[name].builders["create"](job))
        assert set(cloud.resources()) > before
        call_all([command for command in PATHS[name].builders["delete"](job) if "kubectl" not in command.arguments])
        assert set(cloud.resources()) == before
        call_all([command for command in PATHS[name].builders["delete"](other) if "kubectl" not in command.arguments])
    assert not cloud.resources()
