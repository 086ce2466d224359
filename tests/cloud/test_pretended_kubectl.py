"""The stand-in for a GKE cluster runs pods and applies the failure policy of their JobSet."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import execution, gke, jobset, stages
from launch.job import Job
from launch.stages import Stage
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime.errors import UserError
from tests.support import tiny_run
from tests.support.cloud.pretended import PretendedCloud


def a_job(*command: str, **fields: object) -> Job:
    job = Job(
        name="stage1",
        topology=parse_topology("v5p:2x2x2"),
        command=command,
        workdir="gs://bucket/stage1",
        project="a-project",
        zones=("us-east5-a",),
        cluster="pods",
        image="image:1",
        capacity="spot",
        restarts=2,
    )
    return dataclasses.replace(job, **fields)  # type: ignore[arg-type]


def shell(script: str, **fields: object) -> Job:
    return a_job("sh", "-c", script, **fields)


@pytest.fixture
def cluster(cloud: PretendedCloud) -> PretendedCloud:
    cloud.set(clusters={"pods": "us-east5"}, secrets={"wandb": "s3cret"})
    return cloud


def bring_up(job: Job, *verbs: Callable[[Job], list]) -> None:
    for verb in verbs or (gke.create, gke.setup, gke.run):
        execution.run(verb(job))


def wait_for(cloud: PretendedCloud, ready: Callable[[dict], bool]) -> dict:
    deadline = time.monotonic() + 60
    while not ready(one := cloud.jobset("stage1")):
        assert time.monotonic() < deadline, one
        time.sleep(0.05)
    return one


def all_up(one: dict) -> bool:
    """Whether every pod has printed something: it has set its trap for SIGTERM by then."""
    logs = [Path(pod["log"]) for pod in one["pods"].values()]
    return bool(logs) and all(log.exists() and log.read_text() for log in logs)


def kubectl(cloud: PretendedCloud, *arguments: str) -> str:
    command = ["kubectl", "--context=gke_a-project_us-east5_pods", *arguments]
    return subprocess.run(command, env=cloud.environment, capture_output=True, text=True, check=True).stdout


def test_pods_run_with_their_roles_and_secrets_until_they_complete(cluster: PretendedCloud) -> None:
    job = shell("echo $TPU_WORKER_ID of $TPU_WORKER_HOSTNAMES with $KEY", secrets={"KEY": "wandb"})
    bring_up(job)
    one = wait_for(cluster, lambda one: one["state"] != "")
    assert (one["state"], one["restarts"]) == ("Completed", 0)
    lines = kubectl(cluster, *gke.logs(job)[0].arguments[2:]).splitlines()
    addresses = ",".join(pod["address"] for pod in one["pods"].values())
    assert [line.partition("] ")[2] for line in lines] == [f"{index} of {addresses} with s3cret" for index in range(2)]
    assert not any("s3cret" in part for call in cluster.calls() for part in call)


def test_a_retryable_code_restarts_and_counts(cluster: PretendedCloud) -> None:
    bring_up(shell("[ $TPU_WORKER_ID = 0 ] && exit 42; trap 'exit 143' TERM; while :; do sleep 0.1; done"))
    one = wait_for(cluster, lambda one: one["state"] != "")
    assert (one["state"], one["restarts"], one["counted"]) == ("Failed", 2, 2)
    assert {event[3] for event in one["events"]} == {"RestartJobSet"}


def test_a_permanent_code_ends_the_job_set_at_once(cluster: PretendedCloud) -> None:
    bring_up(shell("[ $TPU_WORKER_ID = 0 ] && exit 2; trap 'exit 143' TERM; while :; do sleep 0.1; done"))
    one = wait_for(cluster, lambda one: one["state"] != "")
    assert (one["state"], one["restarts"]) == ("Failed", 0)
    assert one["events"][0][1:] == [2, "PodFailurePolicy", "FailJobSet"]


def test_a_lost_machine_restarts_without_counting_and_stop_is_graceful(cluster: PretendedCloud) -> None:
    job = shell("trap 'echo saved; exit 143' TERM; echo up; while :; do sleep 0.1; done")
    bring_up(job)
    one = wait_for(cluster, all_up)
    cluster.preempt_pod(list(one["pods"])[1])
    one = wait_for(cluster, lambda one: one["restarts"] == 1 and all_up(one))
    assert one["counted"] == 0 and one["events"][0][3] == "RestartJobSetAndIgnoreMaxRestarts"
    log = next(iter(one["pods"].values()))["log"]
    bring_up(job, gke.stop)
    assert Path(log).read_text().split() == ["up", "saved"]
    assert {one["kind"] for one in cluster.resources().values()} == {"pool"}
    bring_up(job, gke.delete)
    assert not cluster.resources()


def test_pods_wait_for_node_pools_that_fit(cluster: PretendedCloud) -> None:
    job = shell("true")
    bring_up(dataclasses.replace(job, capacity="on_demand"), gke.create)
    bring_up(job, gke.setup, gke.run)
    time.sleep(0.5)
    assert {pod["phase"] for pod in cluster.jobset("stage1")["pods"].values()} == {"Pending"}


def test_refusals_of_the_cluster_are_one_sentence(cluster: PretendedCloud) -> None:
    job = shell("sleep 100")
    with pytest.raises(UserError, match=r'context "gke_a-project_us-east5_pods" does not exist'):
        execution.run(gke.run(job))
    with pytest.raises(UserError, match=r"Not found: projects/a-project/locations/us-east5/clusters/other"):
        execution.run(gke.setup(dataclasses.replace(job, cluster="other")))
    bring_up(job)
    before = cluster.jobset("stage1")["manifest"]
    with pytest.raises(UserError, match="already exists; it was left as it is"):
        execution.run(gke.run(job))
    assert cluster.jobset("stage1")["manifest"] == before
    cluster.set(denied=["jobsets.create"])
    with pytest.raises(UserError, match=r"is forbidden.*ask an owner"):
        execution.run(gke.run(dataclasses.replace(job, name="another")))


def test_fields_that_nobody_knows_are_refused(cluster: PretendedCloud) -> None:
    bring_up(shell("true"), gke.setup)
    command = gke.run(shell("true"))[0]
    for old, new, words in (
        ("backoffLimit", "backofLimit", "unknown field"),
        ("replicas: 1", 'replicas: "1"', "cannot unmarshal"),
        ("machineTakenAway", "machine-taken-away", "invalid name"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", "only restartPolicy Never"),
    ):
        assert old in jobset.text(shell("true"))
        with pytest.raises(UserError, match=words):
            execution.run([dataclasses.replace(command, stdin=command.stdin.replace(old, new))])


def test_stages_follow_one_another_until_one_fails_and_the_same_command_goes_on(
    cluster: PretendedCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_FIRST_POLL", 0.2)
    config = tiny_run.make_config(train__steps=3, optimizer__warmup_steps=1)

    def stage(number: int, code: int = 0) -> Stage:
        """A stage whose pods end with a code, and if it is 0 leave the checkpoint of the last step."""
        last = tmp_path / f"stage{number}/checkpoints/3"
        script = f"mkdir -p {last}; touch {last}/commit_success.txt; echo stage {number}; sleep 1"
        job = shell(script if code == 0 else f"exit {code}", workdir=str(tmp_path / f"stage{number}"), follows=True)
        return Stage(f"stage{number}", config, job)

    bring_up(stage(1).job, gke.create, gke.setup)
    with pytest.raises(UserError, match=r"^kubectl reports Failed; `python -m launch gke logs` shows why"):
        execution.run(stages.commands(gke.PATH, [stage(1), stage(2, code=2), stage(3)]))
    failed = cluster.jobset("stage1")
    assert failed["state"] == "Failed" and failed["events"][0][1] == 2  # its logs are still there
    chain = [stage(1), stage(2), stage(3)]
    assert [each.name for each in stages.left(chain)] == ["stage2", "stage3"]
    execution.run(stages.commands(gke.PATH, chain, "stage2"))
    assert cluster.jobset("stage1")["state"] == "Completed"
    assert not stages.left(chain)
