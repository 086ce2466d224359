"""The JobSet and the commands of GKE."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import yaml

from launch import gke, jobset
from launch.job import CAPACITIES, Job
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.errors import UserError
from tests.support.cloud import jobset_controller, jobset_fields
from tests.support.cloud.flags import parse, split
from tests.support.cloud.gcloud_commands import COMMANDS
from tests.support.cloud.world import Refusal


def a_job(topology: object = "v5p:4x4x4@2", **fields: object) -> Job:
    job = Job(
        name="stage2",
        topology=parse_topology(str(topology)),
        command=("python", "-m", "qwenvl_jax.train", "--config=c.py", "--config.data.seed='$(x) \"y\" #1'"),
        workdir="gs://bucket/stage2",
        project="a-project",
        zones=("us-east5-a",),
        cluster="pods",
        image="us-docker.pkg.dev/a-project/images/qwenvl:1",
    )
    return dataclasses.replace(job, **fields)  # type: ignore[arg-type]


def capacity(name: str) -> dict[str, object]:
    more: dict[str, dict[str, object]] = {"reserved": {"reservation": "r1"}, "flex_start": {"hours": 24.0}}
    return {"capacity": name, **more.get(name, {})}


@pytest.mark.parametrize("name", CAPACITIES)
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:16x16@2", "v5p:4x4x4@4", "v6e:2x4", "v6e:1x1", "tpu7x:2x2x2"])
def test_the_api_server_takes_the_job_set_and_gcloud_the_node_pools(topology: str, name: str) -> None:
    more = {
        "secrets": {"A_KEY": "a_Key"},
        "environment": {"B": "yes"},
        "labels": {"team": "x"},
        "local": "/mnt/disk/a b",
    }
    job = a_job(topology, **capacity(name), **more)
    manifest = yaml.safe_load(jobset.text(job))
    jobset_fields.check(manifest)
    assert manifest == jobset.manifest(job)
    replicated = manifest["spec"]["replicatedJobs"][0]
    pods = replicated["template"]["spec"]
    limit = pods["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert replicated["replicas"] * pods["completions"] * limit == job.topology.chips
    assert pods["template"]["spec"]["containers"][0]["command"] == list(job.command)
    commands = gke.create(job)
    assert len(commands) == job.topology.slices
    for command in commands:
        for arguments in (command.arguments, command.undo):
            dotted, rest = split(list(arguments[1:]), COMMANDS)
            parsed = parse(dotted, rest, COMMANDS[dotted])
            if dotted.endswith("create"):
                assert parsed.get("machine-type") == job.topology.machine_type


@pytest.mark.parametrize("name", CAPACITIES)
def test_every_capacity_has_its_selector_and_flags(name: str) -> None:
    job = a_job(**capacity(name))
    selector = jobset.manifest(job)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"]
    flags = " ".join(gke.create(job)[0].arguments)
    wanted = {
        "on_demand": (None, "--num-nodes=16"),
        "spot": ("cloud.google.com/gke-spot", "--spot"),
        "reserved": ("cloud.google.com/reservation-name", "--reservation-affinity=specific --reservation=r1"),
        "flex_start": ("cloud.google.com/gke-flex-start", "--flex-start --enable-autoscaling --num-nodes=0"),
    }
    extra, flag = wanted[name]
    assert flag in flags
    assert set(selector) == {
        "cloud.google.com/gke-tpu-accelerator",
        "cloud.google.com/gke-tpu-topology",
        *([extra] if extra else []),
    }


def test_local_checkpoints_are_in_a_folder_of_the_node_that_outlives_the_pod() -> None:
    pod = jobset.manifest(a_job(local="/dev/shm/checkpoints"))["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec = pod["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts == {"shared-memory": "/dev/shm", "local-checkpoints": "/dev/shm/checkpoints"}
    on_node = {"path": "/dev/shm/checkpoints", "type": "DirectoryOrCreate"}
    assert {"name": "local-checkpoints", "hostPath": on_node} in spec["volumes"]
    assert "local-checkpoints" not in jobset.text(a_job())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "restartStrategy"), "Restart"),
        (("spec", "failurePolicy", "maxRestarts"), -1),
        (("spec", "failurePolicy", "rules", 0, "name"), "permanentError"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "failurePolicy", "rules", 0, "name"), None),
        (("spec", "replicatedJobs", 0, "template", "spec", "template"), None),
        (("spec", "replicatedJobs", 0, "replicas"), 2**30),
        (("metadata", "name"), "2-stages"),
    ],
)
def test_the_stand_in_refuses_what_the_crd_and_its_webhook_refuse(path: tuple[str | int, ...], value: object) -> None:
    manifest: Any = jobset.manifest(a_job())
    jobset_fields.check(manifest)
    *parents, last = path
    node = functools.reduce(lambda node, key: node[key], parents, manifest)
    if value is None:
        del node[last]
    else:
        node[last] = value
    with pytest.raises(Refusal):
        jobset_fields.check(manifest)


def test_a_queue_is_a_label_and_asks_for_flex_start_nodes_together() -> None:
    job = a_job(**capacity("flex_start"), queue="research")
    assert jobset.manifest(job)["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    assert "cloud.google.com/gke-queued: " in jobset.text(job)
    assert "--enable-queued-provisioning" in gke.create(job)[0].arguments


def test_the_rules_are_the_contract_of_exit_codes() -> None:
    """A retryable code restarts the job set and counts; a permanent one ends it; a lost machine does not count."""
    manifest = jobset.manifest(a_job())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    policy = manifest["spec"]["failurePolicy"]
    for code in range(1, 256):
        pod = {"name": "stage2-slice-0-3-abcde", "code": code, "disrupted": False}
        action = jobset_controller.action_for(policy, *jobset_controller.failure_of(job, pod))
        assert action == ("RestartJobSet" if exit_codes.retryable(code) else "FailJobSet"), code
        taken = {**pod, "disrupted": True}
        action = jobset_controller.action_for(policy, *jobset_controller.failure_of(job, taken))
        assert action == "RestartJobSetAndIgnoreMaxRestarts", code


def test_no_command_has_the_value_of_a_secret_and_all_name_the_cluster() -> None:
    job = a_job(secrets={"WANDB_API_KEY": "wandb"})
    container = jobset.manifest(job)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][
        0
    ]
    reference = {"secretKeyRef": {"name": "stage2.wandb-api-key", "key": "value"}}
    assert {"name": "WANDB_API_KEY", "valueFrom": reference} in container["env"]
    write = gke.setup(job)[-1]
    assert write.input_from[:5] == ("gcloud", "secrets", "versions", "access", "latest")
    assert "--from-file=value=/dev/stdin" in write.arguments
    for builder in gke.PATH.builders.values():
        for command in builder(job):
            if command.arguments[0] == "kubectl":
                assert command.arguments[1] == "--context=gke_a-project_us-east5_pods"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cluster": ""}, "--cluster is missing"),
        ({"project": ""}, "--project is missing"),
        ({"image": ""}, "--image is missing"),
        ({"zones": ("us-east5-a", "us-central1-a")}, "nodes in one region, but the zones are in us-central1, us-east5"),
        ({"topology": "v5p:2x2x1@2"}, "joins slices of several machines only"),
        ({"topology": "v5p:4x8x8", "xpk": True, "secrets": {"A": "b"}}, "leave out --xpk or --secret"),
        ({"topology": "v5p:2x2x8", "xpk": True}, "leave --xpk out"),
        ({"topology": "v5p:4x8x8", "xpk": True, "local": "/mnt/disks/a"}, "leave out --xpk or config.checkpoint.local"),
        *(
            ({"local": local}, "which a pod cannot mount from its node")
            for local in ("checkpoints", "gs://bucket/a", "/a/../b", "/", "//", "/a/", "/dev/shm", "/a:b")
        ),
    ],
)
def test_what_gke_cannot_run_is_refused_before_any_call(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        gke.check(a_job(**fields))


# Flags of `xpk workload create` and `delete` in its parser of June 2026.
XPK = {
    "create": "workload cluster project zone tpu-type num-slices docker-image max-restarts command env on-demand spot "
    "reservation termination-grace-period-seconds",
    "delete": "workload cluster project zone force",
}


@pytest.mark.parametrize("name", CAPACITIES)
def test_xpk_knows_the_flags(name: str) -> None:
    job = a_job(xpk=True, **capacity(name))
    for command in (gke.run(job)[0], gke.stop(job)[0], gke.delete(job)[0]):
        flags = {argument.partition("=")[0].removeprefix("--") for argument in command.arguments[3:]}
        assert flags <= set(XPK[command.arguments[2]].split())


def test_xpk_gets_the_same_run() -> None:
    command = gke.run(a_job(xpk=True, capacity="spot"))[0]
    assert command.arguments[:4] == ("xpk", "workload", "create", "--workload=stage2")
    for flag in (
        "--tpu-type=v5p-128",
        "--num-slices=2",
        "--spot",
        "--max-restarts=20",
        "--env=QWENVL_JOIN_SECONDS=1200",
    ):
        assert flag in command.arguments
    assert "'--config.data.seed='\"'\"'$(x)" in command.arguments[-1]


def test_logs_of_one_host_are_those_of_its_pod() -> None:
    job = a_job()
    assert job.topology.hosts_per_slice == 16
    assert (
        "job-index=1,batch.kubernetes.io/job-completion-index=2"
        in gke.logs(dataclasses.replace(job, host="18"))[0].shell
    )
