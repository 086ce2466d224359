"""What the API server refuses in a JobSet: unknown fields, and values that Kubernetes and JobSet do not allow.

The fields are those of jobset.x-k8s.io/v1alpha2 (0.10 and later), batch/v1 and core/v1 that a training job may need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.support.cloud.world import Refusal

TEXT, NUMBER, SWITCH, TEXTS, MAP = "text", "number", "switch", "texts", "map"
_CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "imagePullPolicy": TEXT,
    "command": TEXTS,
    "args": TEXTS,
    "workingDir": TEXT,
    "env": [
        {"name": TEXT, "value": TEXT, "valueFrom": {"secretKeyRef": {"name": TEXT, "key": TEXT, "optional": SWITCH}}}
    ],
    "ports": [{"containerPort": NUMBER, "name": TEXT}],
    "resources": {"limits": MAP, "requests": MAP},
    "securityContext": {"privileged": SWITCH},
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "readOnly": SWITCH}],
}
_POD = {
    "restartPolicy": TEXT,
    "terminationGracePeriodSeconds": NUMBER,
    "activeDeadlineSeconds": NUMBER,
    "hostNetwork": SWITCH,
    "dnsPolicy": TEXT,
    "serviceAccountName": TEXT,
    "priorityClassName": TEXT,
    "schedulerName": TEXT,
    "nodeSelector": MAP,
    "tolerations": [{"key": TEXT, "operator": TEXT, "value": TEXT, "effect": TEXT, "tolerationSeconds": NUMBER}],
    "volumes": [{"name": TEXT, "emptyDir": {"medium": TEXT, "sizeLimit": TEXT}}],
    "containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
}
_META = {"name": TEXT, "namespace": TEXT, "labels": MAP, "annotations": MAP}
_JOB = {
    "parallelism": NUMBER,
    "completions": NUMBER,
    "completionMode": TEXT,
    "backoffLimit": NUMBER,
    "activeDeadlineSeconds": NUMBER,
    "podReplacementPolicy": TEXT,
    "podFailurePolicy": {
        "rules": [
            {
                "action": TEXT,
                "onExitCodes": {"containerName": TEXT, "operator": TEXT, "values": "numbers"},
                "onPodConditions": [{"type": TEXT, "status": TEXT}],
            }
        ]
    },
    "template": {"metadata": _META, "spec": _POD},
}
JOBSET = {
    "apiVersion": TEXT,
    "kind": TEXT,
    "metadata": _META,
    "spec": {
        "ttlSecondsAfterFinished": NUMBER,
        "suspend": SWITCH,
        "managedBy": TEXT,
        "network": {"enableDNSHostnames": SWITCH, "subdomain": TEXT, "publishNotReadyAddresses": SWITCH},
        "successPolicy": {"operator": TEXT, "targetReplicatedJobs": TEXTS},
        "startupPolicy": {"startupPolicyOrder": TEXT},
        "coordinator": {"replicatedJob": TEXT, "jobIndex": NUMBER, "podIndex": NUMBER},
        "failurePolicy": {
            "maxRestarts": NUMBER,
            "restartStrategy": TEXT,
            "rules": [
                {
                    "name": TEXT,
                    "action": TEXT,
                    "onJobFailureReasons": TEXTS,
                    "onJobFailureMessagePatterns": TEXTS,
                    "targetReplicatedJobs": TEXTS,
                }
            ],
        },
        "replicatedJobs": [
            {"name": TEXT, "groupName": TEXT, "replicas": NUMBER, "template": {"metadata": _META, "spec": _JOB}}
        ],
    },
}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RULE = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")


def check(manifest: Mapping[str, Any]) -> None:
    """Raises Refusal for what `kubectl create` would be refused."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        raise Refusal(f'error: resource mapping not found for kind "{manifest.get("kind")}"')
    _check_types(manifest, JOBSET, "")
    name = manifest["metadata"]["name"]
    _require(bool(_LABEL.fullmatch(name)), f'metadata.name: Invalid value: "{name}": must be a DNS label')
    spec = manifest["spec"]
    for rule in spec.get("failurePolicy", {}).get("rules", []):
        _require(bool(_RULE.fullmatch(rule["name"])), f"spec.failurePolicy.rules: invalid name {rule['name']}")
        _require(rule["action"] in _ACTIONS, f"spec.failurePolicy.rules: Unsupported value: {rule['action']}")
        _require(
            set(rule.get("onJobFailureReasons", [])) <= set(_REASONS), "invalid job failure reason in failure policy"
        )
    for key, value in manifest["metadata"].get("labels", {}).items():
        _require(bool(_LABEL_VALUE.fullmatch(value)), f"metadata.labels: Invalid value: {key}={value!r}")
    for job in spec["replicatedJobs"]:
        of_job = job["template"]["spec"]
        longest = f"{name}-{job['name']}-{job['replicas'] - 1}-{of_job['completions'] - 1}-xxxxx"
        _require(len(longest) <= 63, f"pod names such as {longest} would be longer than 63 characters")
        _check_job(of_job)


def _check_job(spec: Mapping[str, Any]) -> None:
    pod = spec["template"]["spec"]
    names = [container["name"] for container in pod["containers"]]
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        _require({mount["name"] for mount in container["volumeMounts"]} <= volumes, "volumeMounts name no volume")
        _require(bool(container["image"]), "containers[0].image: Required value")
    for value in pod["nodeSelector"].values():
        _require(bool(_LABEL_VALUE.fullmatch(value)), f"nodeSelector: Invalid value: {value!r}")
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    _require(
        not rules or pod["restartPolicy"] == "Never", "only restartPolicy Never is supported with podFailurePolicy"
    )
    for rule in rules:
        _require(rule["action"] in ("FailJob", "Ignore", "Count", "FailIndex"), f"Unsupported value: {rule['action']}")
        if codes := rule.get("onExitCodes"):
            values = codes["values"]
            _require(
                0 < len(values) <= 255 and values == sorted(set(values)), "values must be ordered, unique, at most 255"
            )
            _require(codes["operator"] in ("In", "NotIn"), f"Unsupported value: {codes['operator']}")
            _require(codes["operator"] == "NotIn" or 0 not in values, "values: must not be 0 for the In operator")
            _require(codes.get("containerName", names[0]) in names, "must be one of the container names")


def _check_types(value: Any, schema: Any, path: str) -> None:
    if isinstance(schema, dict):
        _decode(isinstance(value, Mapping), path, "an object", value)
        for key, item in value.items():
            if key not in schema:
                raise Refusal(
                    'Error from server (BadRequest): error when creating "STDIN": JobSet in version "v1alpha2" cannot '
                    f'be handled as a JobSet: strict decoding error: unknown field "{path}{key}"'
                )
            _check_types(item, schema[key], f"{path}{key}.")
    elif isinstance(schema, list):
        _decode(isinstance(value, list), path, "a list", value)
        for index, item in enumerate(value):
            _check_types(item, schema[0], f"{path[:-1]}[{index}].")
    elif schema in (TEXTS, "numbers"):
        kind = str if schema == TEXTS else int
        _decode(isinstance(value, list) and all(type(item) is kind for item in value), path, schema, value)
    elif schema == MAP:
        fine = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        quantities = path.endswith(("limits.", "requests."))
        fine = fine and all(isinstance(item, str) or (quantities and type(item) is int) for item in value.values())
        _decode(fine, path, "strings", value)
    else:
        _decode(type(value) is {TEXT: str, NUMBER: int, SWITCH: bool}[schema], path, schema, value)


def _decode(fine: bool, path: str, wanted: str, value: Any) -> None:
    if not fine:
        raise Refusal(
            'Error from server (BadRequest): error when creating "STDIN": JobSet in version "v1alpha2" cannot be '
            "handled as "
            f"a JobSet: json: cannot unmarshal {value!r} into field {path.rstrip('.')} of type {wanted}"
        )


def _require(fine: bool, text: str) -> None:
    if not fine:
        raise Refusal(f'The JobSet "" is invalid: {text}')
