"""Runs the pods of a JobSet as processes of this machine, and applies its failure policy when one fails.

python -m tests.support.cloud.jobset_controller NAME
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.cloud import hosts, world

ROOT = Path(__file__).parents[3]


def start(name: str) -> None:
    """Starts the controller of a JobSet in the background."""
    variables = {**os.environ, world.MARK: f"controller/{name}", "PYTHONPATH": str(ROOT)}
    with open(world.folder() / f"controller-{name}.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.cloud.jobset_controller", name],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def preempt_pod(name: str) -> None:
    """Takes the machine of a pod away: it gets SIGTERM, and the pod the condition DisruptionTarget."""
    with world.locked() as state:
        pod = _pod(state, name)
        pod["disrupted"] = True
    terminate(pod)


def terminate(pod: dict[str, Any]) -> None:
    """Sends SIGTERM to process 1 of a pod, as Kubernetes does."""
    if pod["pid"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pod["pid"], signal.SIGTERM)


def forget_hosts(state: dict[str, Any], name: str) -> None:
    """Removes the hosts of the pods of a JobSet."""
    for mark in [mark for mark in state["hosts"] if mark.startswith(f"pod/{name}/")]:
        del state["hosts"][mark]


def failure_of(job: dict[str, Any], pod: dict[str, Any]) -> tuple[str, str]:
    """Reason and message of the condition `Failed` of a job one of whose pods has ended with an error."""
    for index, rule in enumerate(job.get("podFailurePolicy", {}).get("rules", [])):
        conditions = [condition["type"] for condition in rule.get("onPodConditions", [])]
        if pod["disrupted"] and "DisruptionTarget" in conditions:
            text = f"Pod default/{pod['name']} has condition DisruptionTarget matching {rule['action']} rule"
            return "PodFailurePolicy", f"{text} at index {index}"
        codes = rule.get("onExitCodes")
        if codes and (pod["code"] in codes["values"]) == (codes["operator"] == "In"):
            text = f"Container train for pod default/{pod['name']} failed with exit code {pod['code']}"
            text += f" matching {rule['action']} rule"
            return "PodFailurePolicy", f"{text} at index {index}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def action_for(policy: dict[str, Any], reason: str, message: str) -> str:
    """The action of the first rule of a failure policy that fits."""
    for rule in policy.get("rules", []):
        patterns = rule.get("onJobFailureMessagePatterns", [])
        by_reason = not rule.get("onJobFailureReasons") or reason in rule["onJobFailureReasons"]
        if by_reason and (not patterns or any(re.search(pattern, message) for pattern in patterns)):
            return str(rule["action"])
    return "RestartJobSet"


def main(name: str) -> None:
    """Runs until the JobSet has ended."""
    while True:
        failed = _run_pods(name)
        with world.locked() as state:
            one = state["jobsets"][name]
            spec = one["manifest"]["spec"]
            if failed is None:
                one["state"] = "Completed"
                return
            job = spec["replicatedJobs"][0]["template"]["spec"]
            reason, message = failure_of(job, failed)
            policy = spec["failurePolicy"]
            action = action_for(policy, reason, message)
            one["events"].append([failed["name"], failed["code"], reason, action])
            if action == "FailJobSet" or (action == "RestartJobSet" and one["counted"] >= policy["maxRestarts"]):
                one["state"] = "Failed"
                return
            one["restarts"] += 1
            one["counted"] += action == "RestartJobSet"


def _run_pods(name: str) -> dict[str, Any] | None:
    """Runs all pods once; the first one that failed, or None if all have succeeded."""
    with world.locked() as state:
        forget_hosts(state, name)
        pods = _new_pods(state, name)
    nodes = world.wait_until(lambda state: _free_nodes(state, name), 3600)
    processes = {}
    with world.locked() as state:
        for pod, node in zip(pods, nodes, strict=True):
            pod.update(node=node, phase="Running")
            state["jobsets"][name]["pods"][pod["name"]] = pod
            with open(pod["log"], "ab") as log:
                processes[pod["name"]] = subprocess.Popen(
                    _container(state, name)["command"],
                    cwd=ROOT,
                    env=_environment(state, name, pod),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            pod["pid"] = processes[pod["name"]].pid
    failed = None
    deadline = float("inf")
    while processes:
        for pod_name, process in list(processes.items()):
            code = process.poll()
            if code is None:
                continue
            del processes[pod_name]
            code = 128 - code if code < 0 else code
            with world.locked() as state:
                pod = _pod(state, pod_name)
                pod.update(code=code, phase="Failed" if code else "Succeeded", pid=0)
            world.power_off(f"pod/{name}/{pod_name}")  # what it has started ends with it
            if code and failed is None:
                failed = pod
                grace = _pod_spec(state, name)["terminationGracePeriodSeconds"]
                deadline = time.monotonic() + grace
                for other in processes.values():  # the job has failed: Kubernetes ends its other pods
                    other.send_signal(signal.SIGTERM)
        if time.monotonic() > deadline:
            for other in processes.values():
                other.kill()
        time.sleep(0.05)
    return failed


def _new_pods(state: dict[str, Any], name: str) -> list[dict[str, Any]]:
    job = state["jobsets"][name]["manifest"]["spec"]["replicatedJobs"][0]
    slices, count = job["replicas"], job["template"]["spec"]["completions"]
    attempt = state["jobsets"][name]["restarts"]
    pods, first = [], ""
    for index in range(slices):
        made = []
        for number in range(count):
            pod_name = f"{name}-{job['name']}-{index}-{number}-{attempt:05x}"
            host = hosts.new_host(state, f"pod/{name}/{pod_name}", worker=number, slice=index, slices=slices,
                                  accelerator_type="gke")  # fmt: skip
            made.append(host)
            pods.append({"name": pod_name, "slice": index, "index": number, "phase": "Pending", "code": None,
                         "node": "", "pid": 0, "disrupted": False, "address": host["address"],
                         "log": f"{host['home']}/log"})  # fmt: skip
        first = first or made[0]["address"]
        for host in made:
            host.update(endpoints=",".join(one["address"] for one in made), first=first)
    state["jobsets"][name]["pods"] = {pod["name"]: pod for pod in pods}
    return pods


def _free_nodes(state: dict[str, Any], name: str) -> list[str] | None:
    """A node for every pod: a whole pool per slice; None if there are too few pools that fit."""
    job = state["jobsets"][name]["manifest"]["spec"]["replicatedJobs"][0]
    selector = _pod_spec(state, name)["nodeSelector"]
    limits = _container(state, name)["resources"]["limits"]
    count = job["template"]["spec"]["completions"]
    pools = []
    for pool in state["resources"].values():
        if pool["kind"] != "pool" or pool["nodes"] != count or pool["chips"] != limits["google.com/tpu"]:
            continue
        fits = pool["label"] == selector["cloud.google.com/gke-tpu-accelerator"]
        fits = fits and pool["topology"] in ("", selector["cloud.google.com/gke-tpu-topology"])
        fits = fits and (pool["model"] == "spot") == ("cloud.google.com/gke-spot" in selector)
        fits = fits and pool["reservation"] == selector.get("cloud.google.com/reservation-name", "")
        if fits:
            pools.append(pool)
    if len(pools) < job["replicas"]:
        return None
    return [f"gke-{pool['name']}-{number}" for pool in pools[: job["replicas"]] for number in range(count)]


def _environment(state: dict[str, Any], name: str, pod: dict[str, Any]) -> dict[str, str]:
    """The variables of a pod: of its manifest, of Kubernetes, and those that GKE adds to pods with TPUs."""
    host = state["hosts"][f"pod/{name}/{pod['name']}"]
    variables = hosts.environment(state, host)
    for entry in _container(state, name)["env"]:
        if "value" in entry:
            variables[entry["name"]] = entry["value"]
        else:
            secret = entry["valueFrom"]["secretKeyRef"]
            variables[entry["name"]] = state.get("kubernetes_secrets", {})[secret["name"]][secret["key"]].rstrip("\n")
    variables |= {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": str(pod["index"]),
        "TPU_WORKER_ID": str(pod["index"]),
        "TPU_WORKER_HOSTNAMES": host["endpoints"],
    }
    if host["slices"] > 1:
        variables |= {
            "MEGASCALE_NUM_SLICES": str(host["slices"]),
            "MEGASCALE_SLICE_ID": str(host["slice"]),
            "MEGASCALE_COORDINATOR_ADDRESS": host["first"],
        }
    variables["PYTHONPATH"] = f"{variables['PYTHONPATH']}:{ROOT}"
    return variables


def _pod(state: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one["pods"][name] for one in state["jobsets"].values() if name in one["pods"])


def _pod_spec(state: dict[str, Any], name: str) -> dict[str, Any]:
    job = state["jobsets"][name]["manifest"]["spec"]["replicatedJobs"][0]
    return dict(job["template"]["spec"]["template"]["spec"])


def _container(state: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(_pod_spec(state, name)["containers"][0])


if __name__ == "__main__":
    main(sys.argv[1])
