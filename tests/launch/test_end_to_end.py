"""From nothing to a finished run through preemptions and other numbers of hosts, equal to the bit to an unbroken run.

The cloud is pretended; the hosts and pods are processes of this machine, and so is everything that they run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch import execution, gke, tpu_vm
from launch.job import Job
from launch.path import LaunchPath
from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.checkpoint.steps import finished_steps
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.params import flatten
from tests.support.cloud.pretended import PretendedCloud
from tests.support.gcs_server import VARIABLES

ROOT = Path(__file__).parents[2]
STEPS = 40
TWO_HOSTS, ONE_HOST = "v5p:2x2x2", "v5p:2x2x1"
QUICK = "--xla_backend_optimization_level=0"  # compilation takes most of the time
SETTINGS = (
    *(f"train.steps={STEPS}", "train.checkpoint_every=10", "train.log_every=20", "train.keep_checkpoints=2"),
    *("data.image_groups=4", "data.streams=4", "data.decode_workers=1"),
)


def training(data: Path, workdir: str) -> tuple[str, ...]:
    config = f"--config={ROOT}/tests/support/tiny_config.py:{data}"
    return (
        "python",
        "-m",
        "qwenvl_jax.train",
        config,
        f"--workdir={workdir}",
        *(f"--config.{one}" for one in SETTINGS),
    )


def a_job(topology: str, data: Path, workdir: str) -> Job:
    """The run with two devices in all: one on each of two hosts, or two on one host."""
    slice_of_chips = parse_topology(topology)
    devices = 2 // slice_of_chips.hosts
    return Job(
        name=f"end-to-end-{os.getpid()}",
        topology=slice_of_chips,
        command=training(data, workdir),
        workdir=workdir,
        capacity="spot",
        project="a-project",
        zones=("us-east5-a",),
        cluster="pods",
        image="image:1",
        environment={
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "QWENVL_JOIN_SECONDS": "300",
        },
    )


@pytest.fixture(scope="module")
def unbroken(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], np.ndarray]:
    """The parameters at the end of a run on this machine that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("unbroken")
    supervisor = [sys.executable, "-m", "launch.local", "--devices=2", "--restarts=0", "--", sys.executable]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["XLA_FLAGS"] = QUICK
    run = subprocess.run(
        [*supervisor, *training(tiny_data, str(workdir))[1:]],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1200,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    return flatten(load_params(str(workdir))[0])


def assert_equal_to(unbroken: dict[tuple[str, ...], np.ndarray], workdir: str) -> None:
    finished = flatten(load_params(workdir)[0])
    assert finished.keys() == unbroken.keys()
    for path, leaf in unbroken.items():
        np.testing.assert_array_equal(np.asarray(finished[path]), np.asarray(leaf), err_msg="/".join(path))


def run_verbs(path: LaunchPath, job: Job, *verbs: str) -> None:
    path.check(job)
    for verb in verbs:
        execution.run_in_zones(path.builders[verb], job)


def wait_for(ready: Callable[[], bool], what: Callable[[], str], seconds: float = 1200) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def logs(cloud: PretendedCloud) -> str:
    texts = [path.read_text()[-2000:] for path in (cloud.folder / "hosts").rglob("log*") if path.is_file()]
    return "\n---\n".join(texts)


def prepare(cloud: PretendedCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives hosts the object store of the tests, and the launcher its Python."""
    cloud.set(host_environment={name: os.environ[name] for name in (*VARIABLES, "NO_PROXY", "no_proxy")})
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tpu_vms_are_preempted_and_made_again_with_another_number_of_hosts(
    cloud: PretendedCloud,
    gcs: str,
    tiny_data: Path,
    unbroken: dict[tuple[str, ...], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(cloud, monkeypatch)
    workdir = f"{gcs}/run"
    two = a_job(TWO_HOSTS, tiny_data, workdir)
    run_verbs(tpu_vm.PATH, two, "create", "setup", "run", "status")
    wait_for(lambda: finished_steps(workdir) != [], lambda: logs(cloud))
    cloud.preempt(f"node/us-east5-a/{two.name}")
    assert finished_steps(workdir)[-1] < STEPS
    run_verbs(tpu_vm.PATH, two, "delete")
    one = a_job(ONE_HOST, tiny_data, workdir)
    run_verbs(tpu_vm.PATH, one, "create", "setup", "run", "logs")
    wait_for(lambda: finished_steps(workdir)[-1] == STEPS, lambda: logs(cloud))
    run_verbs(tpu_vm.PATH, one, "stop", "delete")
    assert not cloud.resources()
    assert_equal_to(unbroken, workdir)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pods_lose_a_machine_and_go_on_on_another_number_of_hosts(
    cloud: PretendedCloud, tmp_path: Path, tiny_data: Path, unbroken: dict[tuple[str, ...], np.ndarray]
) -> None:
    cloud.set(clusters={"pods": "us-east5"})
    workdir = str(tmp_path / "run")
    two = a_job(TWO_HOSTS, tiny_data, workdir)
    run_verbs(gke.PATH, two, "create", "setup", "run")
    wait_for(lambda: finished_steps(workdir) != [], lambda: logs(cloud))
    cloud.preempt_pod(list(cloud.jobset(two.name)["pods"])[1])
    wait_for(lambda: cloud.jobset(two.name)["restarts"] == 1, lambda: logs(cloud))
    assert cloud.jobset(two.name)["state"] == ""
    before = finished_steps(workdir)[-1]
    assert before < STEPS
    wait_for(lambda: finished_steps(workdir)[-1] > before, lambda: logs(cloud))
    run_verbs(gke.PATH, two, "stop", "delete")
    assert finished_steps(workdir)[-1] < STEPS
    one = a_job(ONE_HOST, tiny_data, workdir)
    run_verbs(gke.PATH, one, "create", "run", "status", "logs")
    wait_for(lambda: cloud.jobset(one.name)["state"] != "", lambda: logs(cloud))
    assert cloud.jobset(one.name)["state"] == "Completed", logs(cloud)
    run_verbs(gke.PATH, one, "delete")
    assert not cloud.resources()
    assert_equal_to(unbroken, workdir)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hosts_of_different_versions_end_with_one_sentence(
    cloud: PretendedCloud, gcs: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(cloud, monkeypatch)
    job = a_job(TWO_HOSTS, tiny_data, f"{gcs}/run")
    run_verbs(tpu_vm.PATH, job, "create", "setup")
    folders = [Path(host["home"]) / "launch" / job.name for host in cloud.hosts().values()]
    with (folders[1] / "source" / "qwenvl_jax" / "__init__.py").open("a") as file:
        file.write("# another version\n")
    run_verbs(tpu_vm.PATH, job, "run")
    wait_for(lambda: all("ended" in (folder / "state.json").read_text() for folder in folders), lambda: logs(cloud))
    for folder in folders:
        assert json.loads((folder / "state.json").read_text())["code"] == 2
        errors = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, errors
        assert re.search(r"process 1 \(host .+\) differs from process 0 in the code of qwenvl_jax", errors[0]), errors
    assert finished_steps(job.workdir) == []
