"""The stand-in for gcloud has the states, the time and the refusals of the real one."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.support.cloud.pretended import PretendedCloud

ZONE = "--zone=us-east5-a"
NODE = ("compute", "tpus", "tpu-vm", "create", "a", ZONE, "--accelerator-type=v5p-16", "--version=v2-alpha-tpuv5")
QUEUED = ("compute", "tpus", "queued-resources")


def gcloud(cloud: PretendedCloud, *arguments: str) -> tuple[int, str, str]:
    run = subprocess.run(["gcloud", *arguments], env=cloud.environment, capture_output=True, text=True)
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, run.stdout, run.stderr


def state_of(cloud: PretendedCloud, kind: str, name: str, field: str = "state") -> str:
    code, out, _ = gcloud(cloud, "compute", "tpus", kind, "describe", name, ZONE, f"--format=value({field})")
    return out.strip() if code == 0 else "gone"


def test_a_node_is_created_used_preempted_and_deleted(cloud: PretendedCloud) -> None:
    cloud.set(seconds={"provision": 1000})
    assert gcloud(cloud, *NODE, "--spot", "--async")[0] == 0
    assert state_of(cloud, "tpu-vm", "a") == "CREATING"
    ssh = ("compute", "tpus", "tpu-vm", "ssh", "a", ZONE, "--worker=all", "--command=echo $HOME; exit ${CODE:-0}")
    code, _, err = gcloud(cloud, *ssh)
    assert code == 1 and "CREATING" in err
    cloud.set(seconds={"provision": 0})
    assert state_of(cloud, "tpu-vm", "a") == "READY"
    code, out, err = gcloud(cloud, *ssh)
    assert code == 0 and len(set(out.split())) == 2, err  # v5p-16 has 8 chips on 2 hosts
    code, _, err = gcloud(cloud, *ssh[:-1], '--command=[ "$PRETENDED_HOST" != node/us-east5-a/a/1 ] || exit 7')
    assert code == 1 and "worker 1 failed with exit status 7" in err
    cloud.preempt("node/us-east5-a/a")
    assert state_of(cloud, "tpu-vm", "a") == "PREEMPTED"
    code, _, err = gcloud(cloud, *ssh)
    assert code == 1 and "Connection timed out" in err
    assert gcloud(cloud, "compute", "tpus", "tpu-vm", "delete", "a", ZONE, "--quiet")[0] == 0
    assert state_of(cloud, "tpu-vm", "a") == "gone"


def test_preemption_ends_what_runs_on_the_hosts(cloud: PretendedCloud) -> None:
    assert gcloud(cloud, *NODE, "--spot")[0] == 0
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "a", ZONE, "--worker=all", "--command=echo up; sleep 100"]
    with subprocess.Popen(ssh, env=cloud.environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout and [running.stdout.readline() for _ in range(2)] == ["up\n"] * 2  # on both hosts
        cloud.preempt("node/us-east5-a/a")
        assert running.wait(timeout=20) == 1


def test_a_queued_resource_waits_for_chips_and_is_suspended_by_preemption(cloud: PretendedCloud) -> None:
    cloud.set(capacity={"us-east5-a": 0})
    create = (*QUEUED, "create", "q", ZONE, "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", "--spot")
    assert gcloud(cloud, *create, "--node-count=2", "--node-prefix=n")[0] == 0
    time.sleep(0.1)
    assert state_of(cloud, "queued-resources", "q", "state.state") == "WAITING_FOR_RESOURCES"
    cloud.set(capacity={"us-east5-a": 16}, seconds={"provision": 1000})
    assert state_of(cloud, "queued-resources", "q", "state.state") == "PROVISIONING"
    cloud.set(seconds={"provision": 0})
    assert state_of(cloud, "queued-resources", "q", "state.state") == "ACTIVE"
    ssh = (*QUEUED, "ssh", "q", ZONE, "--node=all", "--worker=all", "--command=echo $PRETENDED_HOST")
    hosts = {f"node/us-east5-a/n-{node}/{worker}" for node in range(2) for worker in range(2)}
    assert set(gcloud(cloud, *ssh)[1].split()) == hosts
    code, _, err = gcloud(cloud, *QUEUED, "delete", "q", ZONE, "--quiet")
    assert code == 1 and "FAILED_PRECONDITION" in err
    cloud.preempt("node/us-east5-a/n-1")
    assert state_of(cloud, "queued-resources", "q", "state.state") == "SUSPENDED"
    assert gcloud(cloud, *QUEUED, "delete", "q", ZONE, "--quiet")[0] == 0
    assert not cloud.resources()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--accelerator-type=v5p-16x",), "cannot be"),
        (("--zone=us-east5-b",), "the accelerator v5p-16 was not found in zone us-east5-b"),
        (("--zone=us-moon1-a",), "PERMISSION_DENIED"),
        (("--version=tpu-ubuntu2204-base",), "is not compatible"),
        (("--reserved",), "Reservation not found"),
        (("--project=another",), "does not have permission"),
    ],
)
def test_impossible_requests_are_refused_and_make_nothing(
    cloud: PretendedCloud, change: tuple[str, ...], words: str
) -> None:
    code, _, err = gcloud(cloud, *NODE, *change)
    assert code == 1 and err.startswith("ERROR: (gcloud.compute.tpus.tpu-vm.create)") and words in err
    assert not cloud.resources()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*NODE, "--provisioning-model=SPOT"), "unrecognized arguments: --provisioning-model=SPOT"),
        ((*NODE, "--runtime-version=x"), "unrecognized arguments: --runtime-version=x"),
        ((*NODE, "--spot", "--reserved"), "At most one of"),
        (NODE[:-1], "argument --version: Must be specified"),
        ((*QUEUED, "crate", "q"), "Invalid choice: 'crate'"),
        (("compute", "instances", "bulk", "create", "--provisioning-model=FLEX_START"), "Invalid choice: 'FLEX_START'"),
    ],
)
def test_unknown_words_are_refused_before_anything_is_asked(
    cloud: PretendedCloud, arguments: tuple[str, ...], words: str
) -> None:
    cloud.set(account="")
    code, _, err = gcloud(cloud, *arguments)
    assert code == 2 and words in err
    code, _, err = gcloud(cloud, *NODE)
    assert code == 1 and "You do not currently have an active account selected" in err


def test_permissions_quota_and_names(cloud: PretendedCloud) -> None:
    cloud.set(denied=["tpu.nodes.create"])
    assert "Permission 'tpu.nodes.create' denied" in gcloud(cloud, *NODE)[2]
    cloud.set(denied=[], quota={"tpu/v5p/spot": 4})
    assert "Quota limit 'TPUV5PPreemptiblePerProjectPerZoneForTPUAPI'" in gcloud(cloud, *NODE, "--spot")[2]
    assert gcloud(cloud, *NODE)[0] == 0  # the pools are apart
    assert "ALREADY_EXISTS" in gcloud(cloud, *NODE)[2]
    cloud.set(capacity={"us-central1-a": 4})
    assert '"code": 8' in gcloud(cloud, *NODE, "--zone=us-central1-a")[2]


URL = "https://www.googleapis.com/compute/v1/projects/a-project/regions/us-east5"
TEMPLATE = ("compute", "instance-templates", "create", "t", "--instance-template-region=us-east5")
MACHINE = ("--machine-type=ct6e-standard-4t", "--maintenance-policy=TERMINATE")
GROUP = ("compute", "instance-groups", "managed")


def make_group(cloud: PretendedCloud, *flags: str) -> tuple[int, str, str]:
    policy = ("compute", "resource-policies", "create", "workload-policy", "w", "--region=us-east5")
    gcloud(cloud, *policy, "--type=HIGH_THROUGHPUT", "--accelerator-topology=2x4")
    gcloud(cloud, *TEMPLATE, *MACHINE)
    create = (*GROUP, "create", "g", ZONE, "--size=0", f"--template={URL}/instanceTemplates/t")
    return gcloud(cloud, *create, *flags)


def test_a_managed_group_brings_its_hosts_up_together(cloud: PretendedCloud) -> None:
    policy = f"--workload-policy={URL}/resourcePolicies/w"
    assert "require BULK mode" in make_group(cloud, policy)[2]
    assert "The URL is malformed" in make_group(cloud, "--workload-policy=w", "--target-size-policy-mode=bulk")[2]
    assert make_group(cloud, policy, "--target-size-policy-mode=bulk")[0] == 0
    assert "must match the" in gcloud(cloud, *GROUP, "resize", "g", ZONE, "--size=1")[2]
    cloud.set(capacity={"us-east5-a": 4})
    assert gcloud(cloud, *GROUP, "resize", "g", ZONE, "--size=2")[0] == 0
    shown = (*GROUP, "list-instances", "g", ZONE, "--format=value(instanceStatus)")
    assert gcloud(cloud, *shown)[1].split() == ["PENDING"] * 2
    cloud.set(capacity={"us-east5-a": 8}, seconds={"wait": 0, "boot": 1000})
    assert gcloud(cloud, *shown)[1].split() == ["STAGING"] * 2
    cloud.set(seconds={"boot": 0})
    assert gcloud(cloud, *shown)[1].split() == ["RUNNING"] * 2
    out = gcloud(cloud, *GROUP, "describe", "g", ZONE, "--format=json")[1]
    assert json.loads(out)["status"] == {"isStable": True, "appliedAcceleratorTopologies": ["2x4"]}
    ssh = ("compute", "ssh", "g-0001", ZONE, "--command=exit 3")
    assert gcloud(cloud, *ssh)[0] == 3
    assert gcloud(cloud, "compute", "instances", "delete", "g-0001", ZONE, "--quiet")[0] == 0
    assert "instance/us-east5-a/g-0001" in cloud.resources()  # the group has made it again
    assert gcloud(cloud, *GROUP, "delete", "g", ZONE, "--quiet")[0] == 0
    assert {one["kind"] for one in cloud.resources().values()} == {"policy", "template"}


def test_refusals_of_compute_engine(cloud: PretendedCloud) -> None:
    flex = (*TEMPLATE, *MACHINE, "--provisioning-model=FLEX_START")
    assert "maxRunDuration must be set" in gcloud(cloud, *flex)[2]
    assert gcloud(cloud, *TEMPLATE, *MACHINE, "--provisioning-model=flex-start")[0] == 2
    instance = ("compute", "instances", "create", "i", ZONE, "--resource-policies=w")
    assert "Resource policy must have one of" in gcloud(cloud, *instance)[2]
    requests = (*GROUP, "resize-requests", "create", "g", ZONE, "--resize-by=2")
    assert "is not allowed" in gcloud(cloud, *requests)[2]
    make_group(cloud, f"--workload-policy={URL}/resourcePolicies/w", "--target-size-policy-mode=bulk")
    cloud.set(quota={"gce/v6e/on_demand": 4, "tpu/v6e/on_demand": 100})
    assert "TPUS-PER-TPU-FAMILY" in gcloud(cloud, *GROUP, "resize", "g", ZONE, "--size=2")[2]
    assert gcloud(cloud, "compute", "tpus", "tpu-vm", "describe", "g-0000", ZONE)[0] == 1
