"""`gcloud compute`: workload policies, instance templates, managed groups and their instances, with their refusals."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from tests.support.cloud import hosts, world
from tests.support.cloud.flags import Parsed
from tests.support.cloud.output import show
from tests.support.cloud.world import Refusal

# Machine types of TPUs: the kind of chip, the chips of one machine.
MACHINES = {
    "ct4p-hightpu-4t": ("v4", 4),
    "ct5lp-hightpu-1t": ("v5e", 1),
    "ct5lp-hightpu-4t": ("v5e", 4),
    "ct5lp-hightpu-8t": ("v5e", 8),
    "ct5p-hightpu-1t": ("v5p", 1),
    "ct5p-hightpu-2t": ("v5p", 2),
    "ct5p-hightpu-4t": ("v5p", 4),
    "ct6e-standard-1t": ("v6e", 1),
    "ct6e-standard-4t": ("v6e", 4),
    "ct6e-standard-8t": ("v6e", 8),
    "tpu7x-standard-1t": ("tpu7x", 1),
    "tpu7x-standard-4t": ("tpu7x", 4),
}
_API = "https://www.googleapis.com/compute/v1"
_URL = re.compile(
    r"(https://(www|compute)\.googleapis\.com/compute/\w+/)?projects/[^/]+/(global|(regions|zones)/[^/]+)/\w+/[^/]+"
)
_KINDS = {
    "resource-policies": "policy",
    "instance-templates": "template",
    "instance-groups": "group",
    "instances": "instance",
}
_PERMISSIONS = {
    "policy": "compute.resourcePolicies",
    "template": "compute.instanceTemplates",
    "group": "compute.instanceGroupManagers",
    "instance": "compute.instances",
}


def command(parsed: Parsed, name: str) -> int:
    """Runs one command; `name` is its name after `compute.`."""
    if name in ("ssh", "scp"):
        return _connect(parsed, name)
    if name in ("project-info.describe", "regions.describe", "zones.describe", "reservations.describe"):
        return _describe_other(parsed, name)
    if name == "instance-groups.managed.wait-until":
        return _wait_until(parsed)
    kind = _KINDS[name.split(".")[0]]
    verb = name.rpartition(".")[2]
    with world.locked() as state:
        advance(state)
        if name == "instance-groups.managed.resize-requests.create":
            raise _not_fetched(parsed, "Creating resize requests for managed instance group with TPU is not allowed.")
        permission = {"describe": "get", "resize": "update", "workload-policy": "create"}.get(verb, verb)
        if f"{_PERMISSIONS[kind]}.{permission}" in state["settings"]["denied"]:
            name = parsed.names[0] if parsed.names else ""
            path = f"projects/{state['settings']['project']}/{_scope(parsed, kind)}/{name}"
            raise _not_fetched(parsed, f"Required '{_PERMISSIONS[kind]}.{permission}' permission for '{path}'")
        if verb in ("create", "workload-policy"):
            create = {"policy": _policy, "template": _template, "group": _group, "instance": _instance}[kind]
            create(parsed, state)
        elif verb == "resize":
            _resize(parsed, state, _get(parsed, state, "group", parsed.name))
        elif verb == "delete":
            for one in parsed.names:
                _delete(parsed, state, _get(parsed, state, kind, one))
        elif verb in ("list-instances", "list-errors"):
            group = _get(parsed, state, "group", parsed.name)
            instances = [_view(state, one) for one in _instances(state, group)]
            shown = instances if verb == "list-instances" else group.get("errors", [])
            print(show(parsed, shown, "name zone.basename() status instanceStatus"))
        elif verb == "describe":
            print(show(parsed, _view(state, _get(parsed, state, kind, parsed.name)), ""))
        elif verb == "list":
            views = [_view(state, one) for one in state["resources"].values() if one["kind"] == kind]
            print(show(parsed, views, "name status"))
        else:
            raise parsed.refuse("the stand-in does not know this command")
    if verb == "delete":
        time.sleep(state["settings"]["seconds"]["delete"])
    return 0


def _wait_until(parsed: Parsed) -> int:
    """Waits until all machines of a group run."""

    def stable(state: dict[str, Any]) -> Any:
        advance(state)
        group = _get(parsed, state, "group", parsed.name)
        return True if _view(state, group)["status"]["isStable"] else None

    if not parsed.has("stable"):
        raise parsed.refuse(
            "Exactly one of (--all-instances-config-effective | --stable | --version-target-reached) must be "
            "specified.",
            2,
        )
    world.wait_until(stable, float(parsed.get("timeout", "60")))
    print("Group is stable", file=sys.stderr)
    return 0


def advance(state: dict[str, Any]) -> None:
    """PENDING -> STAGING -> RUNNING, all instances of a bulk group together, once there are chips for all of them."""
    now = time.time()
    seconds = state["settings"]["seconds"]
    free = state["settings"]["capacity"]
    for group in [one for one in state["resources"].values() if one["kind"] == "group"]:
        instances = _instances(state, group)
        waiting = [one for one in instances if one["status"] == "PENDING"]
        needed = sum(one["chips"] for one in waiting)
        if waiting and now - waiting[0]["since"] >= seconds["wait"] and needed <= free.get(group["zone"], float("inf")):
            if group["zone"] in free:
                free[group["zone"]] -= needed
            for one in waiting:
                one.update(status="STAGING", since=now)
    for one in state["resources"].values():
        if one["kind"] == "instance" and one["status"] == "STAGING" and now - one["since"] >= seconds["boot"]:
            one.update(status="RUNNING", since=now)


def preempt(state: dict[str, Any], key: str) -> None:
    """Stops the machines of a spot group; the group does not start them again."""
    for one in _instances(state, state["resources"][key]):
        one["status"] = "TERMINATED"
        for host in hosts.hosts_of(state, f"instance/{one['zone']}/{one['name']}"):
            host["on"] = False
            world.power_off(host["mark"])


def _policy(parsed: Parsed, state: dict[str, Any]) -> None:
    _add(parsed, state, "policy", {"topology": parsed.get("accelerator-topology"), "type": parsed.get("type")})


def _template(parsed: Parsed, state: dict[str, Any]) -> None:
    machine = parsed.get("machine-type", "n1-standard-1")
    model = parsed.get("provisioning-model", "STANDARD")
    if parsed.get("resource-policies"):
        raise _not_fetched(
            parsed,
            "Invalid value for field 'resource.properties.resourcePolicies': Resource policy "
            "must have one of [VmMaintenancePolicy, InstanceSchedulePolicy, SnapshotSchedulePolicy].",
        )
    if model == "FLEX_START" and not parsed.has("max-run-duration"):
        raise _not_fetched(
            parsed,
            "Invalid value for field 'resource.properties.scheduling': maxRunDuration must be "
            "set for instances with provisioning model FLEX_START.",
        )
    if parsed.has("instance-termination-action") and model == "STANDARD" and not parsed.has("max-run-duration"):
        raise _not_fetched(
            parsed,
            "Invalid value for field 'resource.properties.scheduling': You cannot specify a "
            "termination action for a VM instance that has the standard provisioning model (default).",
        )
    if (
        model == "RESERVATION_BOUND"
        and parsed.get("reservation").rsplit("/", 1)[-1] not in state["settings"]["reservations"]
    ):
        raise _not_fetched(
            parsed,
            f"The resource 'projects/{state['settings']['project']}/reservations/"
            f"{parsed.get('reservation')}' was not found",
        )
    if machine in MACHINES and parsed.get("maintenance-policy") != "TERMINATE":
        raise _not_fetched(
            parsed,
            "Instances with TPU accelerators do not support live migration: the maintenance policy must be TERMINATE.",
        )
    _add(parsed, state, "template", {"machine": machine, "model": model, "flags": parsed.flags})


def _group(parsed: Parsed, state: dict[str, Any]) -> None:
    zone = parsed.get("zone")
    if not zone:
        raise parsed.refuse("argument --zone: Must be specified.", 2)
    template = _referred(parsed, state, "template", parsed.get("template"))
    policy = None
    if parsed.has("workload-policy"):
        policy = _referred(parsed, state, "policy", parsed.get("workload-policy"))
        if policy["topology"] and parsed.get("target-size-policy-mode") != "bulk":
            raise _not_fetched(parsed, "MIGs with TPU accelerator topology require BULK mode in target size policy.")
    machine = template["machine"]
    kind, chips = MACHINES.get(machine, ("", 0))
    if zone not in state["settings"]["zones"] or (kind and kind not in state["settings"]["zones"][zone]):
        raise _not_fetched(
            parsed,
            f"Invalid value for field 'resource.instanceTemplate': Machine type '{machine}' "
            f"does not exist in zone '{zone}'.",
        )
    fields = {"zone": zone, "template": template["name"], "topology": policy["topology"] if policy else "", "size": 0,
              "chips": chips, "kind_of_chip": kind, "spot": template["model"] == "SPOT"}  # fmt: skip
    _add(parsed, state, "group", fields)
    if int(parsed.get("size")):
        _resize(parsed, state, _get(parsed, state, "group", parsed.name))


def _instance(parsed: Parsed, state: dict[str, Any]) -> None:
    if parsed.get("resource-policies"):
        raise _not_fetched(
            parsed,
            "Resource policy must have one of [VmMaintenancePolicy, InstanceSchedulePolicy, SnapshotSchedulePolicy].",
        )
    raise parsed.refuse("the stand-in makes instances through managed groups alone")


def _resize(parsed: Parsed, state: dict[str, Any], group: dict[str, Any]) -> None:
    size = int(parsed.get("size"))
    settings = state["settings"]
    if group["topology"]:
        needed = 1
        for side in group["topology"].split("x"):
            needed *= int(side)
        if size * group["chips"] != needed:
            raise _not_fetched(
                parsed,
                f"Invalid value for field 'size': '{size}'. The target size must match the "
                f"accelerator topology {group['topology']}.",
            )
    limit = settings["quota"].get(f"gce/{group['kind_of_chip']}/{'spot' if group['spot'] else 'on_demand'}")
    if limit is not None and size * group["chips"] > limit:
        raise _not_fetched(
            parsed,
            "Quota 'TPUS-PER-TPU-FAMILY-per-project-region' exceeded.  Limit: "
            f"{float(limit)} in region {group['zone'].rpartition('-')[0]}.",
        )
    group["size"] = size
    made = []
    for index in range(len(_instances(state, group)), size):
        name = f"{group['name']}-{index:04d}"
        key = f"instance/{group['zone']}/{name}"
        state["resources"][key] = {"kind": "instance", "name": name, "zone": group["zone"], "status": "PENDING",
                                   "since": time.time(), "group": group["name"], "chips": group["chips"]}  # fmt: skip
        made.append(hosts.new_host(state, f"{key}/0", worker=index, slice=0, slices=1,
                                   accelerator_type=f"{group['kind_of_chip']}-{size * group['chips']}"))  # fmt: skip
    for host in made:
        host.update(endpoints=",".join(one["address"] for one in made), first=made[0]["address"])


def _delete(parsed: Parsed, state: dict[str, Any], one: dict[str, Any]) -> None:
    users = {"policy": "topology", "template": "template"}.get(one["kind"])
    for group in [other for other in state["resources"].values() if other["kind"] == "group"]:
        if users == "template" and group["template"] == one["name"]:
            path = f"projects/{state['settings']['project']}/global/instanceTemplates/{one['name']}"
            raise _not_fetched(
                parsed, f"The instance_template resource '{path}' is already being used by '{group['name']}'"
            )
    if one["kind"] == "group":
        for instance in _instances(state, one):
            _remove(state, instance)
    if one["kind"] == "instance":
        group = state["resources"].get(f"group/{one['zone']}/{one['group']}")
        _remove(state, one)
        if group:  # it makes another one
            again = Parsed(parsed.command, [group["name"]], {"zone": one["zone"], "size": str(group["size"])}, [])
            _resize(again, state, group)
        return
    del state["resources"][one["key"]]
    print(f"Deleted [{_API}/{one['key']}].", file=sys.stderr)


def _remove(state: dict[str, Any], instance: dict[str, Any]) -> None:
    key = f"instance/{instance['zone']}/{instance['name']}"
    for host in hosts.hosts_of(state, key):
        world.power_off(host["mark"])
        del state["hosts"][host["mark"]]
    del state["resources"][key]
    free = state["settings"]["capacity"]
    if instance["zone"] in free and instance["status"] in ("STAGING", "RUNNING"):
        free[instance["zone"]] += instance["chips"]


def _connect(parsed: Parsed, verb: str) -> int:
    remote = [name for name in parsed.names if ":" in name] if verb == "scp" else [parsed.name]
    name = remote[0].partition(":")[0].rpartition("@")[2]
    with world.locked() as state:
        advance(state)
        instance = _get(parsed, state, "instance", name)
        if instance["status"] != "RUNNING":
            raise parsed.refuse(
                f"External IP address was not found; instance {name} is in state {instance['status']}. [/usr/bin/ssh] "
                "exited with return code [255]."
            )
        host = hosts.hosts_of(state, f"instance/{instance['zone']}/{name}")[0]
        variables = hosts.environment(state, host)
    if verb == "scp":
        hosts.copy(parsed, [host])
        return 0
    code = hosts.run(host, variables, parsed.get("command") or " ".join(parsed.remainder))
    if code == 255:
        print(f"ERROR: (gcloud.compute.ssh) [/usr/bin/ssh] exited with return code [{code}].", file=sys.stderr)
    return code


def _not_fetched(parsed: Parsed, text: str) -> Refusal:
    return parsed.refuse(f"Could not fetch resource:\n - {text}")


def _describe_other(parsed: Parsed, name: str) -> int:
    with world.locked() as state:
        settings = state["settings"]
    if name == "zones.describe" and parsed.name not in settings["zones"]:
        raise _not_fetched(parsed, f"The resource 'projects/p/zones/{parsed.name}' was not found")
    if name == "reservations.describe" and parsed.name not in settings["reservations"]:
        raise _not_fetched(parsed, f"The resource 'reservations/{parsed.name}' was not found")
    print(
        show(parsed, {"name": parsed.name if parsed.names else settings["project"], "status": "UP", "quotas": []}, "")
    )
    return 0


def _scope(parsed: Parsed, kind: str) -> str:
    if kind in ("group", "instance"):
        return f"zones/{parsed.get('zone')}"
    region = parsed.get("instance-template-region") or parsed.get("region")
    return f"regions/{region}" if region else "global"


def _key(parsed: Parsed, kind: str, name: str) -> str:
    return f"{kind}/{_scope(parsed, kind).removeprefix('zones/').removeprefix('regions/')}/{name}"


def _add(parsed: Parsed, state: dict[str, Any], kind: str, fields: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", parsed.name):
        raise _not_fetched(
            parsed,
            f"Invalid value for field 'resource.name': '{parsed.name}'. Must be a match of "
            "regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'",
        )
    key = _key(parsed, kind, parsed.name)
    path = {"policy": "resourcePolicies", "template": "instanceTemplates", "group": "instanceGroupManagers"}[kind]
    full = f"projects/{state['settings']['project']}/{_scope(parsed, kind)}/{path}/{parsed.name}"
    if key in state["resources"]:
        raise _not_fetched(parsed, f"The resource '{full}' already exists")
    state["resources"][key] = {"kind": kind, "name": parsed.name, "key": key, "link": f"{_API}/{full}", **fields}
    print(f"Created [{_API}/{full}].", file=sys.stderr)


def _get(parsed: Parsed, state: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    key = _key(parsed, kind, name)
    if key not in state["resources"]:
        path = {"policy": "resourcePolicies", "template": "instanceTemplates", "group": "instanceGroupManagers",
                "instance": "instances"}[kind]  # fmt: skip
        full = f"projects/{state['settings']['project']}/{_scope(parsed, kind)}/{path}/{name}"
        raise _not_fetched(parsed, f"The resource '{full}' was not found")
    return state["resources"][key]


def _referred(parsed: Parsed, state: Mapping[str, Any], kind: str, link: str) -> dict[str, Any]:
    """A template or policy by its URL. A bare name is refused, except that of a global template."""
    if not _URL.fullmatch(link) and (kind == "policy" or f"template/global/{link}" not in state["resources"]):
        raise _not_fetched(parsed, f"Invalid value for field '{kind}': '{link}'. The URL is malformed.")
    name = link.rsplit("/", 1)[-1]
    scope = link.split("/regions/")[1].split("/")[0] if "/regions/" in link else "global"
    key = f"{kind}/{scope}/{name}"
    if key not in state["resources"]:
        raise _not_fetched(parsed, f"The resource '{link}' was not found")
    return state["resources"][key]


def _instances(state: Mapping[str, Any], group: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [one for one in state["resources"].values()
            if one["kind"] == "instance" and (one["group"], one["zone"]) == (group["name"], group["zone"])]  # fmt: skip


def _view(state: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    if one["kind"] == "instance":
        zone = f"{_API}/projects/{state['settings']['project']}/zones/{one['zone']}"
        address = state["hosts"][f"instance/{one['zone']}/{one['name']}/0"]["address"]
        access = [{"name": "External NAT", "natIP": address}]
        return {
            "name": one["name"],
            "zone": zone,
            "status": one["status"],
            "instanceStatus": one["status"],
            "instance": f"{zone}/instances/{one['name']}",
            "currentAction": "NONE" if one["status"] == "RUNNING" else "CREATING",
            "networkInterfaces": [{"networkIP": address, "accessConfigs": access}],
        }
    if one["kind"] == "group":
        running = [other for other in _instances(state, one) if other["status"] == "RUNNING"]
        stable = len(running) == one["size"]
        applied = [one["topology"]] if one["topology"] and running and stable else []
        return {
            "name": one["name"],
            "targetSize": one["size"],
            "instanceTemplate": one["template"],
            "selfLink": one["link"],
            "status": {"isStable": stable, "appliedAcceleratorTopologies": applied},
        }
    return {"name": one["name"], "selfLink": one["link"], "status": "READY"}
