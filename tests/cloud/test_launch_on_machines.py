"""Slices are created, used and deleted through the stand-in for gcloud; the supervisor on the hosts is the real one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from launch import execution
from launch.job import Job
from launch.paths import PATHS
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime.errors import UserError
from tests.support.cloud.pretended import PretendedCloud

ROOT = Path(__file__).parents[2]
# What stands for the training: says which process it is, and waits for SIGTERM.
SCRIPT = (
    "import os, signal, sys, time; "
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); "
    "print('process', os.environ.get('JAX_PROCESS_ID'), 'of', os.environ.get('JAX_NUM_PROCESSES'), "
    "os.environ.get('JAX_COORDINATOR_ADDRESS'), os.environ['NOTE'], flush=True); "
    "time.sleep(100)"
)


def job_of(topology: str, tmp_path: Path) -> Job:
    return Job(
        name="stage2",
        topology=parse_topology(topology),
        command=("python", "-c", SCRIPT),
        workdir=str(tmp_path / "workdir"),
        zones=("us-east5-a",),
        project="a-project",
        environment={"NOTE": 'it\'s "fine" $HOME'},
    )


def install(cloud: PretendedCloud) -> list[Path]:
    """Puts this working tree and this Python where `setup` would; the folder of the job on every host."""
    folders = []
    for host in cloud.hosts().values():
        folder = Path(host["home"]) / "launch" / "stage2"
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "source").mkdir()
        for name in ("launch", "qwenvl_jax"):
            (folder / "source" / name).symlink_to(ROOT / name)
        python = folder / "venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        folders.append(folder)
    return folders


def do(name: str, verb: str, job: Job) -> None:
    PATHS[name].check(job)
    execution.run(PATHS[name].builders[verb](job))


def logs(folders: list[Path], count: int) -> list[str]:
    """The first line of every log, once all have one."""
    for _ in range(600):
        texts = [(folder / "log.txt").read_text() for folder in folders if (folder / "log.txt").exists()]
        if len(texts) == count and all("\n" in text for text in texts):
            return sorted(text.splitlines()[0] for text in texts)
        time.sleep(0.1)
    raise AssertionError(texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "topology"),
    [("tpu_vm", "v5p-16"), ("queued_resource", "v5p-16@2"), ("gce", "v5p-16"), ("gce", "v6e-16@2")],
)
def test_a_stage_from_create_to_delete(
    name: str, topology: str, cloud: PretendedCloud, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = job_of(topology, tmp_path)
    do(name, "create", job)
    hosts = job.topology.hosts
    assert len(cloud.hosts()) == hosts
    folders = install(cloud)
    do(name, "run", job)
    lines = logs(folders, hosts)
    assert all(line.endswith('it\'s "fine" $HOME') for line in lines)
    if name == "gce":  # the other paths leave the numbers to JAX
        assert [line.split()[:4] for line in lines] == [
            ["process", str(index), "of", str(hosts)] for index in range(hosts)
        ]
        assert len({line.split()[4] for line in lines}) == 1
    capfd.readouterr()
    do(name, "status", job)
    assert capfd.readouterr().out.count(": running") == hosts
    do(name, "stop", job)
    assert capfd.readouterr().out.count("ended, exit code 143") == hosts
    do(name, "delete", job)
    assert not cloud.resources()


@pytest.mark.parametrize("name", ["tpu_vm", "queued_resource", "gce"])
def test_a_refusal_leaves_nothing_behind(name: str, cloud: PretendedCloud, tmp_path: Path) -> None:
    cloud.set(zones={"us-east5-a": ["v6e"]})
    with pytest.raises(UserError):
        do(name, "create", job_of("v5p-16", tmp_path))
    assert not cloud.resources()
