"""The JobSet of a run on GKE: one child job per slice, one pod per virtual machine.

Facts about the fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ (release 0.10 or later, whose rules
match messages) and https://docs.cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice.
"""

from __future__ import annotations

from typing import Any

from launch import yaml_text
from launch.job import Job
from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.errors import UserError

API_VERSION = "jobset.x-k8s.io/v1alpha2"
SLICE = "slice"  # name of the replicated job
CONTAINER = "train"
LOCAL = "local-checkpoints"  # name of the volume

# From SIGTERM to SIGKILL. A run needs one step and one checkpoint to end; spot machines are gone after 30 s at most.
GRACE_SECONDS = 300
# How long a finished job set and its logs stay.
KEPT_SECONDS = 7 * 24 * 3600
# Pods of one job set start minutes apart if nodes have to pull the image.
JOIN_SECONDS = 1200
# A pod name has the names of job set and replicated job, three numbers and a random suffix.
_LONGEST_POD_NAME = 63


def manifest(job: Job) -> dict[str, Any]:
    """The JobSet as nested dictionaries.

    Raises:
      UserError: if a pod would have a name that is too long.
    """
    topology = job.topology
    longest = f"{job.name}-{SLICE}-{topology.slices - 1}-{topology.hosts_per_slice - 1}-xxxxx"
    if len(longest) > _LONGEST_POD_NAME:
        raise UserError(f"the pods of {job.name!r} would have names like {longest}, which are too long; shorten --name")
    labels = {**job.labels, **({"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {})}
    # A node pool is one slice: every child job gets a pool of its own, and no pod of another job shares it.
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": API_VERSION,
        "kind": "JobSet",
        "metadata": {"name": job.name, **({"labels": labels} if labels else {}), "annotations": annotations},
        "spec": {
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "failurePolicy": failure_policy(job.restarts),
            "replicatedJobs": [
                {
                    "name": SLICE,
                    "replicas": topology.slices,
                    "template": {
                        "spec": {
                            "parallelism": topology.hosts_per_slice,
                            "completions": topology.hosts_per_slice,
                            "backoffLimit": 0,  # one lost pod ends the job, because the others cannot go on
                            "podFailurePolicy": pod_failure_policy(),
                            "template": {
                                **({"metadata": {"labels": dict(job.labels)}} if job.labels else {}),
                                "spec": _pod(job),
                            },
                        }
                    },
                }
            ],
        },
    }


def text(job: Job) -> str:
    """The JobSet as YAML."""
    return yaml_text.dump(manifest(job))


def pod_failure_policy() -> dict[str, Any]:
    """What makes a job fail with the reason `PodFailurePolicy`: a machine that is taken away, or a permanent error.

    Exit codes that are not listed are permanent; the list is that of `qwenvl_jax/runtime/exit_codes.py`.
    """
    retryable = [code for code in range(1, 256) if exit_codes.retryable(code)]
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": retryable},
            },
        ]
    }


def failure_policy(restarts: int) -> dict[str, Any]:
    """What the job set does when a job fails; every other failure restarts it, at most `restarts` times."""
    return {
        "maxRestarts": restarts,
        "restartStrategy": "Recreate",
        "rules": [
            {
                "name": "machineTakenAway",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": ["condition DisruptionTarget "],
            },
            {"name": "permanentError", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
        ],
    }


def _pod(job: Job) -> dict[str, Any]:
    """The pod of one virtual machine."""
    topology = job.topology
    selector = {
        "cloud.google.com/gke-tpu-accelerator": topology.cloud.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": topology.grid,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.capacity == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"})
    if job.capacity == "reserved":
        selector["cloud.google.com/reservation-name"] = job.reservation
    if job.capacity == "flex_start":
        # Kueue asks for all nodes at once, through queued provisioning.
        selector[f"cloud.google.com/gke-{'queued' if job.queue else 'flex-start'}"] = "true"
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if job.local:
        # A folder of the node, which outlives the pod.
        volumes.append({"name": LOCAL, "hostPath": {"path": job.local, "type": "DirectoryOrCreate"}})
        mounts.append({"name": LOCAL, "mountPath": job.local})
    return {
        "restartPolicy": "Never",  # the rules for exit codes require it
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "volumes": volumes,
        "containers": [
            {
                "name": CONTAINER,
                "image": job.image,
                # No shell: the run is process 1 of the container and gets SIGTERM itself.
                "command": list(job.command),
                "env": _variables(job),
                "securityContext": {"privileged": True},
                "resources": {"limits": {"google.com/tpu": topology.chips_per_host}},
                "volumeMounts": mounts,
            }
        ],
    }


def _variables(job: Job) -> list[dict[str, Any]]:
    variables = {"QWENVL_JOIN_SECONDS": str(JOIN_SECONDS), **job.environment}
    plain = [{"name": name, "value": value} for name, value in variables.items()]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name(job, name), "key": "value"}}}
        for name in job.secrets
    ]
    return plain + secret


def secret_name(job: Job, variable: str) -> str:
    """The name of the Kubernetes secret that holds the value of a variable.

    A dot, which no job's name has, keeps apart the variable B_C of the job `a` and C of the job `a-b`.
    """
    return f"{job.name}.{variable.lower().replace('_', '-').strip('-')}"
