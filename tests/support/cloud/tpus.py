"""`gcloud compute tpus`: nodes and queued resources, which take their time, and are refused as the real ones are."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tests.support.cloud import hosts, world
from tests.support.cloud.flags import Parsed
from tests.support.cloud.output import show
from tests.support.cloud.tpu_requests import TYPES, accelerator_of, check_request, permit

_DOCS = "see https://cloud.google.com/tpu/docs/regions"


def command(parsed: Parsed) -> int:
    """Runs one command of the group."""
    name = parsed.command.split("compute.tpus.")[1]
    if name in ("tpu-vm.ssh", "tpu-vm.scp", "queued-resources.ssh", "queued-resources.scp"):
        return _connect(parsed, name)
    if name == "tpu-vm.create":
        return _create_node(parsed)
    if name == "queued-resources.create":
        return _create_queued(parsed)
    with world.locked() as state:
        advance(state)
        kind = "node" if name.startswith("tpu-vm") else "queued"
        if name.endswith("accelerator-types.list"):
            kinds = state["settings"]["zones"].get(_zone(parsed), [])
            types = [{"name": f"projects/p/locations/z/acceleratorTypes/{word}", "type": word}
                     for word, (chip, _) in TYPES.items() if chip in kinds]  # fmt: skip
            print(show(parsed, types, "name.basename()"))
        elif name in ("locations.list", "tpu-vm.versions.list"):
            print(
                show(parsed, [{"locationId": zone, "name": zone} for zone in state["settings"]["zones"]], "locationId")
            )
        elif name.endswith(".list"):
            permit(parsed, state, f"tpu.{_api(kind)}.list", _zone(parsed))
            views = [_view(state, one) for one in state["resources"].values()
                     if one["kind"] == kind and _zone(parsed) in ("-", one["zone"])]  # fmt: skip
            print(show(parsed, views, "name.basename() acceleratorType acceleratorConfig.topology state state.state"))
        elif name.endswith(".describe"):
            permit(parsed, state, f"tpu.{_api(kind)}.get", _zone(parsed))
            print(show(parsed, _view(state, _get(parsed, state, kind)), ""))
        elif name.endswith(".delete"):
            permit(parsed, state, f"tpu.{_api(kind)}.delete", _zone(parsed))
            _delete(parsed, state, _get(parsed, state, kind))
        elif name in ("tpu-vm.stop", "tpu-vm.start", "queued-resources.reset"):
            _switch(parsed, state, _get(parsed, state, kind), name.rpartition(".")[2])
    if name.endswith(".delete"):
        time.sleep(0 if parsed.has("async") else state["settings"]["seconds"]["delete"])
        noun = "tpu" if kind == "node" else "queued resource"
        print(f"Deleted {noun} [{parsed.name}].", file=sys.stderr)
    return 0


def _create_node(parsed: Parsed) -> int:
    zone = _zone(parsed)
    with world.locked() as state:
        chips = check_request(parsed, state, zone, "nodes", parsed.get("version"))
        key = f"node/{zone}/{parsed.name}"
        _check_new(parsed, state, key, f"projects/{state['settings']['project']}/locations/{zone}/nodes/{parsed.name}")
        print(f"Create request issued for: [{parsed.name}]", file=sys.stderr)
        _take(parsed, state, zone, chips)
        _add_node(state, parsed, key, chips)
        if parsed.name in state["settings"]["fails"]:
            del state["resources"][key]
            raise parsed.refuse('{\n  "code": 13,\n  "message": "an internal error has occurred"\n}')
    if parsed.has("async"):
        return 0
    print(f"Waiting for operation [projects/p/locations/{zone}/operations/operation-1] to complete...", file=sys.stderr)

    def ready(state: dict[str, Any]) -> Any:
        advance(state)
        node = state["resources"].get(key)
        return "gone" if node is None else node["state"] if node["state"] != "CREATING" else None

    if world.wait_until(ready) != "READY":
        raise parsed.refuse(
            '{\n  "code": 10,\n  "message": "The TPU was preempted or deleted while it was created."\n}'
        )
    print(f"Created tpu [{parsed.name}].", file=sys.stderr)
    return 0


def _create_queued(parsed: Parsed) -> int:
    zone = _zone(parsed)
    if not (parsed.has("node-id") or parsed.has("node-count")):
        raise parsed.refuse("Exactly one of (--node-id | --node-count : --node-prefix) must be specified.", 2)
    with world.locked() as state:
        advance(state)
        chips = check_request(parsed, state, zone, "queuedResources", parsed.get("runtime-version"))
        path = f"projects/{state['settings']['project']}/locations/{zone}/queuedResources/{parsed.name}"
        _check_new(parsed, state, f"queued/{zone}/{parsed.name}", path)
        count = int(parsed.get("node-count", "1"))
        prefix = parsed.get("node-prefix", parsed.name)
        nodes = [parsed.get("node-id")] if parsed.has("node-id") else [f"{prefix}-{index}" for index in range(count)]
        for node in nodes:
            _check_new(parsed, state, f"node/{zone}/{node}", path.replace("queuedResources", "nodes"))
        limit = parsed.get("valid-until-duration").rstrip("s")
        now = time.time()
        state["resources"][f"queued/{zone}/{parsed.name}"] = {
            "kind": "queued", "name": parsed.name, "zone": zone, "state": "WAITING_FOR_RESOURCES", "since": now,
            "nodes": nodes, "chips": chips, "flags": parsed.flags,
            "until": now + float(limit) if limit.isdecimal() else 0,
        }  # fmt: skip
    print(f"Create request issued for: [{parsed.name}]", file=sys.stderr)
    return 0


def advance(state: dict[str, Any]) -> None:
    """Brings nodes and queued resources into the states that they have by now."""
    now = time.time()
    seconds = state["settings"]["seconds"]
    for one in state["resources"].values():
        if one["kind"] == "node" and one["state"] == "CREATING" and now - one["since"] >= seconds["provision"]:
            one["state"] = "READY"
    for key, one in [(key, one) for key, one in state["resources"].items() if one["kind"] == "queued"]:
        age = now - one["since"]
        if one["state"] == "WAITING_FOR_RESOURCES" and one["until"] and now > one["until"]:
            one["state"] = "FAILED"
            one["error"] = "The queued resource request expired before it could be fulfilled."
        elif one["state"] == "WAITING_FOR_RESOURCES" and age >= seconds["wait"]:
            needed = one["chips"] * len(one["nodes"])
            if needed <= _free(state, one["zone"]):
                one.update(state="PROVISIONING", since=now)
                if one["zone"] in state["settings"]["capacity"]:
                    state["settings"]["capacity"][one["zone"]] -= needed
                for index, node in enumerate(one["nodes"]):
                    slices = (index, len(one["nodes"]))
                    of_node = Parsed("", [node], one["flags"], [])
                    _add_node(state, of_node, f"node/{one['zone']}/{node}", one["chips"], key, slices)
        elif one["state"] == "PROVISIONING":
            nodes = [state["resources"].get(f"node/{one['zone']}/{node}") for node in one["nodes"]]
            if one["name"] in state["settings"]["fails"]:
                one.update(state="FAILED", error="an internal error has occurred")
            elif all(node and node["state"] == "READY" for node in nodes):
                one.update(state="ACTIVE", since=now)


def preempt(state: dict[str, Any], key: str) -> None:
    """Takes a spot node away: its hosts are off at once; its queued resource is suspended."""
    node = state["resources"][key]
    node["state"] = "PREEMPTED"
    for host in hosts.hosts_of(state, key):
        host["on"] = False
        world.power_off(host["mark"])
    if node["queued"]:
        queued = state["resources"][node["queued"]]
        queued["state"] = "SUSPENDED"
        for name in queued["nodes"]:  # the slices of one request go together
            other = state["resources"].get(f"node/{queued['zone']}/{name}")
            if other and other["state"] != "PREEMPTED":
                preempt(state, f"node/{queued['zone']}/{name}")


def _add_node(
    state: dict[str, Any], parsed: Parsed, key: str, chips: int, queued: str = "", slices: tuple[int, int] = (0, 1)
) -> None:
    _, _, accelerator = accelerator_of(parsed)
    state["resources"][key] = {
        "kind": "node", "name": parsed.name, "zone": key.split("/")[1], "state": "CREATING", "since": time.time(),
        "chips": chips, "queued": queued, "accelerator": accelerator, "flags": parsed.flags,
    }  # fmt: skip
    count = max(1, -(-chips // state["settings"]["chips_per_host"]))
    made = [hosts.new_host(state, f"{key}/{index}", worker=index, slice=slices[0], slices=slices[1],
                           accelerator_type=accelerator) for index in range(count)]  # fmt: skip
    endpoints = ",".join(host["address"] for host in made)
    first = made[0]["address"]
    if slices[0]:
        first = hosts.hosts_of(state, f"node/{key.split('/')[1]}/{state['resources'][queued]['nodes'][0]}")[0][
            "address"
        ]
    for host in made:
        host.update(endpoints=endpoints, first=first)


def _delete(parsed: Parsed, state: dict[str, Any], one: dict[str, Any]) -> None:
    if one["kind"] == "queued":
        nodes = [name for name in one["nodes"] if f"node/{one['zone']}/{name}" in state["resources"]]
        may = one["state"] in ("ACCEPTED", "WAITING_FOR_RESOURCES", "FAILED", "SUSPENDED")
        if not may and nodes and not parsed.has("force"):
            raise parsed.refuse(
                f"FAILED_PRECONDITION: The queued resource {parsed.name} is in state {one['state']} and has nodes; "
                "delete its nodes first, or set force."
            )
        for name in nodes:
            _remove_node(state, f"node/{one['zone']}/{name}")
        del state["resources"][f"queued/{one['zone']}/{one['name']}"]
        return
    _remove_node(state, f"node/{one['zone']}/{one['name']}")


def _remove_node(state: dict[str, Any], key: str) -> None:
    for host in hosts.hosts_of(state, key):
        world.power_off(host["mark"])
        del state["hosts"][host["mark"]]
    node = state["resources"].pop(key)
    capacity = state["settings"]["capacity"]
    if node["zone"] in capacity and node["state"] != "PREEMPTED":
        capacity[node["zone"]] += node["chips"]


def _switch(parsed: Parsed, state: dict[str, Any], one: dict[str, Any], verb: str) -> None:
    if verb == "reset":
        one.update(state="WAITING_FOR_RESOURCES", since=time.time())
        return
    if len(hosts.hosts_of(state, f"node/{one['zone']}/{one['name']}")) > 1:
        raise parsed.refuse(f"FAILED_PRECONDITION: {verb} is not supported for TPU slices with more than one host.")
    one["state"] = "STOPPED" if verb == "stop" else "READY"
    for host in hosts.hosts_of(state, f"node/{one['zone']}/{one['name']}"):
        host["on"] = verb == "start"
        world.power_off(host["mark"])


def _connect(parsed: Parsed, name: str) -> int:
    zone = _zone(parsed)
    if name.endswith("scp"):
        remote = [path for path in parsed.names if ":" in path]
        if len(remote) != 1:
            raise parsed.refuse("Source(s) must be remote when destination is local; give one remote path.")
        target = remote[0].partition(":")[0].rpartition("@")[2]
    else:
        target = parsed.name.rpartition("@")[2]
    with world.locked() as state:
        advance(state)
        permit(parsed, state, "tpu.nodes.get", zone)
        nodes = [target]
        if name.startswith("queued"):
            queued = _get(parsed, state, "queued", target)
            if queued["state"] != "ACTIVE":
                raise parsed.refuse(f"QueuedResource [{target}] is not in state ACTIVE, but {queued['state']}.")
            chosen = parsed.get("node", "0")
            nodes = queued["nodes"] if chosen == "all" else [queued["nodes"][int(index)] for index in chosen.split(",")]
        all_hosts = []
        for node in nodes:
            one = _get(parsed, state, "node", node)
            if one["state"] not in ("READY", "PREEMPTED"):
                raise parsed.refuse(f"TPU is not ready: its state is {one['state']}. Run `describe` to check it.")
            of_node = hosts.hosts_of(state, f"node/{zone}/{node}")
            all_hosts += of_node
        variables = [hosts.environment(state, host) for host in all_hosts]
    if name.endswith("scp"):
        hosts.copy(parsed, all_hosts)
        return 0
    return hosts.ssh(parsed, all_hosts, variables)


def _zone(parsed: Parsed) -> str:
    if not parsed.get("zone"):
        noun = "tpu" if "tpu-vm" in parsed.command else "queued_resource"
        raise parsed.refuse(
            f"Error parsing [{noun}].\nThe [{noun}] resource is not properly specified.\nFailed to find attribute "
            "[zone]. The attribute can be set in the following ways: \n- provide the argument `--zone` on the command "
            "line\n- set the property `compute/zone`"
        )
    return parsed.get("zone")


def _check_new(parsed: Parsed, state: Mapping[str, Any], key: str, path: str) -> None:
    if key in state["resources"]:
        raise parsed.refuse(f"ALREADY_EXISTS: Resource '{path}' already exists")


def _get(parsed: Parsed, state: Mapping[str, Any], kind: str, name: str = "") -> dict[str, Any]:
    name = name or parsed.name
    key = f"{kind}/{_zone(parsed)}/{name}"
    if key not in state["resources"]:
        noun = "nodes" if kind == "node" else "queuedResources"
        path = f"projects/{state['settings']['project']}/locations/{_zone(parsed)}/{noun}/{name}"
        raise parsed.refuse(f"NOT_FOUND: Resource '{path}' was not found")
    return state["resources"][key]


def _take(parsed: Parsed, state: dict[str, Any], zone: str, chips: int) -> None:
    if chips > _free(state, zone):
        raise parsed.refuse(
            '{\n  "code": 8,\n  "message": "There is no more capacity in the zone \\"' + zone + '\\"; you can try in '
            f'another zone where Cloud TPU Nodes are offered ({_DOCS}) [EID: 0xe1d1ce9f2eae7a03]"\n}}'
        )
    if zone in state["settings"]["capacity"]:
        state["settings"]["capacity"][zone] -= chips


def _free(state: Mapping[str, Any], zone: str) -> float:
    return state["settings"]["capacity"].get(zone, float("inf"))


def _api(kind: str) -> str:
    return "nodes" if kind == "node" else "queuedResources"


def _view(state: dict[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """A node or queued resource as `describe` shows it."""
    base = f"projects/a-project/locations/{one['zone']}"
    if one["kind"] == "queued":
        specs = [{"nodeId": node, "parent": base, "node": {"acceleratorType": one["flags"].get("accelerator-type", "")}}
                 for node in one["nodes"]]  # fmt: skip
        status: dict[str, Any] = {"state": one["state"]}
        if "error" in one:
            status["failedData"] = {"error": {"code": 13, "message": one["error"]}}
        return {"name": f"{base}/queuedResources/{one['name']}", "state": status, "tpu": {"nodeSpec": specs}}
    with_hosts = hosts.hosts_of(state, f"node/{one['zone']}/{one['name']}")
    endpoints = [{"ipAddress": host["address"], "port": 8470, "accessConfig": {"externalIp": host["address"]}}
                 for host in with_hosts]  # fmt: skip
    view = {
        "name": f"{base}/nodes/{one['name']}",
        "acceleratorType": one["accelerator"],
        "state": one["state"],
        "health": "HEALTHY" if one["state"] == "READY" else "HEALTH_UNSPECIFIED",
        "networkEndpoints": endpoints,
        "runtimeVersion": one["flags"].get("version", one["flags"].get("runtime-version", "")),
        "schedulingConfig": {"spot": "spot" in one["flags"]},
        "labels": Parsed("", [], one["flags"], []).pairs("labels"),
        "upcomingMaintenance": {},
    }
    if one["queued"]:
        view["queuedResource"] = f"{base}/queuedResources/{one['queued'].rsplit('/', 1)[1]}"
    if one["state"] == "PREEMPTED":
        view["healthDescription"] = "The TPU was preempted."
    return view
