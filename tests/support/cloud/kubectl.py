"""The stand-in for `kubectl`: job sets, pods and secrets of the clusters of the pretended cloud."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.support.cloud import jobset_controller, jobset_fields, world
from tests.support.cloud.flags import Parsed
from tests.support.cloud.world import Refusal

ROOT = Path(__file__).parents[3]
_VALUES = {
    "create": "filename validate",
    "apply": "filename validate",
    "create.secret.generic": "from-file from-literal",
    "get": "selector output",
    "delete": "selector timeout grace-period",
    "logs": "selector tail max-log-requests container since",
    "version": "output",
}
_SWITCHES = {
    "get": "ignore-not-found watch all-namespaces",
    "delete": "wait ignore-not-found force",
    "logs": "prefix follow timestamps previous",
    "version": "client",
}
_GLOBAL = "context namespace request-timeout kubeconfig"


def main(arguments: list[str]) -> int:
    """Runs one command line; its exit code."""
    world.record_call("kubectl", arguments)
    try:
        return _run(_parse(arguments))
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code


def _parse(arguments: list[str]) -> Parsed:
    leading = [argument for argument in arguments if not argument.startswith("-")]
    command = leading[0] if leading else ""
    if leading[:3] == ["create", "secret", "generic"]:
        command = "create.secret.generic"
    if command not in _VALUES:
        raise Refusal(f'error: unknown command "{command}" for "kubectl"')
    values = f"{_VALUES[command]} {_GLOBAL}".split()
    switches = _SWITCHES.get(command, "").split()
    parsed = Parsed(command, leading[command.count(".") + 1 :], {}, [])
    for argument in arguments:
        name, sign, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("-"):
            continue
        if not argument.startswith("--") or name not in (*values, *switches):
            raise Refusal(f"error: unknown flag: {argument}\nSee 'kubectl {command} --help' for usage.")
        if name in values and not sign:
            raise Refusal(f"error: the stand-in wants --{name}=VALUE in one word")
        parsed.flags[name] = value or "true"
    return parsed


def _run(parsed: Parsed) -> int:
    with world.locked() as state:
        if parsed.command == "version":
            print("Client Version: v1.33.4")
            return 0
        clusters = {f"gke_{state['settings']['project']}_{where}_{name}" for name, where in
                    state["settings"]["clusters"].items()}  # fmt: skip
        context = parsed.get("context")
        if context not in clusters or "context" not in state:
            raise Refusal(f'error: context "{context}" does not exist')
        if not state["settings"]["account"]:
            raise Refusal("error: You must be logged in to the server (Unauthorized)")
        if "jobsets.create" in state["settings"]["denied"] and parsed.command == "create":
            raise Refusal(
                'Error from server (Forbidden): error when creating "STDIN": jobsets.jobset.x-k8s.io is forbidden: '
                'User "someone@example.com" cannot create resource "jobsets" in API group "jobset.x-k8s.io" in the '
                'namespace "default": requires one of ["container.thirdPartyObjects.create"] permission(s).'
            )
    if parsed.command in ("create", "apply"):
        return _create(parsed)
    if parsed.command == "create.secret.generic":
        return _create_secret(parsed)
    return {"get": _get, "delete": _delete, "logs": _logs}[parsed.command](parsed)


def _create(parsed: Parsed) -> int:
    text = sys.stdin.read() if parsed.get("filename") == "-" else Path(parsed.get("filename")).read_text()
    manifest = yaml.safe_load(text)
    jobset_fields.check(manifest)
    name = manifest["metadata"]["name"]
    with world.locked() as state:
        state.setdefault("jobsets", {})
        if name in state["jobsets"]:
            raise Refusal(
                f'Error from server (AlreadyExists): error when creating "STDIN": jobsets.jobset.x-k8s.io "{name}" '
                "already "
                "exists"
            )
        state["jobsets"][name] = {
            "manifest": manifest,
            "restarts": 0,
            "counted": 0,
            "state": "",
            "pods": {},
            "events": [],
        }
    print(f"jobset.jobset.x-k8s.io/{name} created")
    jobset_controller.start(name)
    return 0


def _create_secret(parsed: Parsed) -> int:
    name = parsed.names[-1]
    key, _, source = parsed.get("from-file").partition("=")
    value = Path(source).read_text()
    with world.locked() as state:
        secrets = state.setdefault("kubernetes_secrets", {})
        if name in secrets:
            raise Refusal(f'error: failed to create secret secrets "{name}" already exists')
        secrets[name] = {key: value}
    print(f"secret/{name} created")
    return 0


def _selected(parsed: Parsed, state: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = dict(part.split("=", 1) for part in parsed.get("selector").split(",") if part)
    pods = []
    for name, one in state.get("jobsets", {}).items():
        for pod in one["pods"].values():
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/job-index": str(pod["slice"]),
                "batch.kubernetes.io/job-completion-index": str(pod["index"]),
            }
            if all(labels.get(key) == value for key, value in wanted.items()):
                pods.append(pod)
    return pods


def _get(parsed: Parsed) -> int:
    kind = parsed.names[0]
    with world.locked() as state:
        if kind in ("pods", "pod"):
            pods = _selected(parsed, state)
            if parsed.get("output") == "json":
                print(json.dumps({"kind": "List", "items": [_pod_view(pod) for pod in pods]}))
            elif not pods:
                print("No resources found in default namespace.", file=sys.stderr)
            else:
                print("NAME                READY   STATUS    RESTARTS   AGE   IP   NODE")
                for pod in pods:
                    ready = "1/1" if pod["phase"] == "Running" else "0/1"
                    status = {"Succeeded": "Completed", "Failed": "Error"}.get(pod["phase"], pod["phase"])
                    print(f"{pod['name']}   {ready}   {status}   0   1m   {pod['address']}   {pod['node']}")
            return 0
        one = state.get("jobsets", {}).get(parsed.names[1])
        if one is None:
            if parsed.has("ignore-not-found"):
                return 0
            raise Refusal(f'Error from server (NotFound): jobsets.jobset.x-k8s.io "{parsed.names[1]}" not found')
        status = {"restarts": one["restarts"], "terminalState": one["state"], "restartsCountTowardsMax": one["counted"]}
        if parsed.get("output") == "json":
            print(json.dumps({**one["manifest"], "status": status}))
        elif jsonpath := re.fullmatch(r"jsonpath=\{\.status\.(\w+)\}", parsed.get("output")):
            print(status.get(jsonpath[1], ""), end="")
        else:
            print("NAME     TERMINALSTATE   RESTARTS   COMPLETED   SUSPENDED   AGE")
            completed = "True" if one["state"] == "Completed" else ""
            print(f"{parsed.names[1]}   {one['state']}   {one['restarts']}   {completed}   false   1m")
    return 0


def _pod_view(pod: dict[str, Any]) -> dict[str, Any]:
    ended = {"terminated": {"exitCode": pod["code"]}} if pod["code"] is not None else {"running": {}}
    return {
        "metadata": {"name": pod["name"]},
        "spec": {"nodeName": pod["node"]},
        "status": {"phase": pod["phase"], "containerStatuses": [{"state": ended}]},
    }


def _delete(parsed: Parsed) -> int:
    kind, name = parsed.names[0], parsed.names[1]
    with world.locked() as state:
        shelf = state.get("kubernetes_secrets" if kind == "secret" else "jobsets", {})
        full = "secrets" if kind == "secret" else "jobsets.jobset.x-k8s.io"
        if name not in shelf:
            if parsed.has("ignore-not-found"):
                return 0
            raise Refusal(f'Error from server (NotFound): {full} "{name}" not found')
        if kind == "secret":
            del shelf[name]
    if kind == "secret":
        print(f'secret "{name}" deleted')
        return 0
    limit = float(parsed.get("timeout", "60s").rstrip("s"))
    world.power_off(f"controller/{name}")
    with world.locked() as state:
        pods = list(state["jobsets"][name]["pods"].values())
    for pod in pods:
        jobset_controller.terminate(pod)
    deadline = time.monotonic() + limit
    while world.processes_of(f"pod/{name}"):
        if time.monotonic() > deadline:
            raise Refusal(f"error: timed out waiting for the condition on jobsets/{name}")
        time.sleep(0.05)
    with world.locked() as state:
        del state["jobsets"][name]
        jobset_controller.forget_hosts(state, name)
    print(f'jobset.jobset.x-k8s.io "{name}" deleted')
    return 0


def _logs(parsed: Parsed) -> int:
    with world.locked() as state:
        pods = _selected(parsed, state)
    if not pods:
        print("No resources found in default namespace.", file=sys.stderr)
        return 0
    if len(pods) > int(parsed.get("max-log-requests", "5")):
        raise Refusal(
            f"error: you are attempting to follow {len(pods)} log streams, but maximum allowed concurrency is 5, use "
            "--max-log-requests to increase the limit"
        )
    if parsed.has("follow"):
        return subprocess.call(["tail", "-n", parsed.get("tail", "10"), "-f", pods[0]["log"]])
    for pod in pods:
        lines = Path(pod["log"]).read_text().splitlines()[-int(parsed.get("tail", "10")) :]
        prefix = f"[pod/{pod['name']}/train] " if parsed.has("prefix") else ""
        for line in lines:
            print(prefix + line)
    return 0
