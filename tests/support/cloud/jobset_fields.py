"""What the API server refuses in a JobSet: unknown fields, and values that Kubernetes and JobSet do not allow.

The fields are those of jobset.x-k8s.io/v1alpha2 (0.10 and later), batch/v1 and core/v1 that a training job may need.
What is required, allowed and limited was read in kubernetes-sigs/jobset: api/jobset/v1alpha2/jobset_types.go at 0336a8f
(from which the CRD is generated), config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml at 0a2be5c, and
pkg/webhooks/jobset_webhook.go at 0107852.
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
    "volumes": [
        {
            "name": TEXT,
            "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
            "hostPath": {"path": TEXT, "type": TEXT},
        }
    ],
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
_POD_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_RULE = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
_STRATEGIES = ("Recreate", "BlockingRecreate")
_LONGEST_RULE = 128  # characters of a rule's name
_INT32 = 2**31 - 1
_MEDIA = ("", "Memory", "HugePages")
_HOST_PATHS = ("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
# Fields without which an object is refused, by the object that has them.
_REQUIRED = {
    "spec.failurePolicy.rules": ("name", "action"),
    "spec.replicatedJobs": ("name", "template"),
    "spec.replicatedJobs.template.spec": ("template",),
    "spec.replicatedJobs.template.spec.podFailurePolicy.rules": ("action",),
    "spec.replicatedJobs.template.spec.template.spec": ("containers",),
    "spec.replicatedJobs.template.spec.template.spec.containers": ("name",),
    "spec.replicatedJobs.template.spec.template.spec.containers.env": ("name",),
    "spec.replicatedJobs.template.spec.template.spec.containers.volumeMounts": ("name", "mountPath"),
    "spec.replicatedJobs.template.spec.template.spec.volumes": ("name",),
    "spec.replicatedJobs.template.spec.template.spec.volumes.hostPath": ("path",),
}
_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")


def check(manifest: Mapping[str, Any]) -> None:
    """Raises Refusal for what `kubectl create` would be refused."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        raise Refusal(f'error: resource mapping not found for kind "{manifest.get("kind")}"')
    _check_types(manifest, JOBSET, "")
    name = manifest["metadata"]["name"]
    _require(bool(_LABEL.fullmatch(name)), f'metadata.name: Invalid value: "{name}": must be a DNS label')
    spec = manifest["spec"]
    _check_failure_policy(spec.get("failurePolicy", {}))
    _require(0 <= spec.get("ttlSecondsAfterFinished", 0) <= _INT32, "spec.ttlSecondsAfterFinished: Invalid value")
    for key, value in manifest["metadata"].get("labels", {}).items():
        _require(bool(_LABEL_VALUE.fullmatch(value)), f"metadata.labels: Invalid value: {key}={value!r}")
    for job in spec["replicatedJobs"]:
        of_job = job["template"]["spec"]
        longest = f"{name}-{job['name']}-{job['replicas'] - 1}-{of_job['completions'] - 1}-xxxxx"
        _require(len(longest) <= 63, f"pod names such as {longest} would be longer than 63 characters")
        _require(bool(_POD_NAME.fullmatch(longest)), f"pod names such as {longest} would not begin with a letter")
        _require(job["replicas"] * of_job["parallelism"] <= _INT32, "replicas x parallelism is too large")
        _check_job(of_job)
        _check_volumes(of_job["template"]["spec"])


def _check_failure_policy(policy: Mapping[str, Any]) -> None:
    rules = policy.get("rules", [])
    names = [rule["name"] for rule in rules]
    _require(len(names) == len(set(names)), "rule names are not unique")
    _require(
        policy.get("restartStrategy", "Recreate") in _STRATEGIES, "spec.failurePolicy.restartStrategy: Unsupported"
    )
    _require(0 <= policy.get("maxRestarts", 0) <= _INT32, "spec.failurePolicy.maxRestarts: Invalid value")
    for rule in rules:
        fine = _RULE.fullmatch(rule["name"]) and len(rule["name"]) <= _LONGEST_RULE
        _require(bool(fine), f"spec.failurePolicy.rules: invalid name {rule['name']}")
        _require(rule["action"] in _ACTIONS, f"spec.failurePolicy.rules: Unsupported value: {rule['action']}")
        _require(
            set(rule.get("onJobFailureReasons", [])) <= set(_REASONS), "invalid job failure reason in failure policy"
        )


def _check_volumes(pod: Mapping[str, Any]) -> None:
    names = [volume["name"] for volume in pod.get("volumes", [])]
    _require(len(names) == len(set(names)), "volumes: Duplicate value")
    for volume in pod.get("volumes", []):
        sources = [source for source in ("emptyDir", "hostPath") if source in volume]
        _require(len(sources) == 1, f"volumes: {volume['name']} must have exactly one source")
        _require(bool(_LABEL.fullmatch(volume["name"])), f"volumes: Invalid name {volume['name']}")
        _require(volume.get("emptyDir", {}).get("medium", "") in _MEDIA, "volumes.emptyDir.medium: Unsupported value")
        on_host = volume.get("hostPath", {"path": "/"})
        _require(".." not in on_host["path"].split("/"), "volumes.hostPath.path: must not contain '..'")
        _require(on_host.get("type", "") in _HOST_PATHS, "volumes.hostPath.type: Unsupported value")
    for container in pod["containers"]:
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        _require(len(paths) == len(set(paths)), "volumeMounts.mountPath: Invalid value: must be unique")
        _require(not any(":" in path for path in paths), "volumeMounts.mountPath: must not contain ':'")


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
        where = re.sub(r"\[\d+\]", "", path).rstrip(".")
        missing = [name for name in _REQUIRED.get(where, ()) if name not in value]
        _require(not missing, f"{path}{''.join(missing[:1])}: Required value")
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
