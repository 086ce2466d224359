"""`gcloud container`: node pools of TPUs on GKE."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tests.support.cloud import world
from tests.support.cloud.compute import MACHINES
from tests.support.cloud.flags import Parsed
from tests.support.cloud.output import show

LABELS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}


def command(parsed: Parsed, name: str) -> int:
    """Runs one command; `name` is its name after `container.`."""
    with world.locked() as state:
        settings = state["settings"]
        location = parsed.get("location") or parsed.get("zone") or parsed.get("region")
        cluster = parsed.get("cluster") or (parsed.name if name != "clusters.list" else "")
        permission = f"container.clusters.{'get' if name != 'node-pools.create' else 'update'}"
        if permission in settings["denied"]:
            raise parsed.refuse(
                f'ResponseError: code=403, message=Required "{permission}" permission(s) for '
                f'"projects/{settings["project"]}/locations/{location}/clusters/{cluster}".'
            )
        if name == "clusters.list":
            clusters = [{"name": one, "location": where} for one, where in settings["clusters"].items()]
            print(show(parsed, clusters, "name location"))
            return 0
        if settings["clusters"].get(cluster) != location:
            raise parsed.refuse(
                "ResponseError: code=404, message=Not found: "
                f"projects/{settings['project']}/locations/{location}/clusters/{cluster}.\nNo cluster named "
                f"'{cluster}' in {settings['project']}."
            )
        if name == "clusters.get-credentials":
            state["context"] = cluster
            print(
                f"Fetching cluster endpoint and auth data.\nkubeconfig entry generated for {cluster}.", file=sys.stderr
            )
        elif name == "clusters.describe":
            print(show(parsed, {"name": cluster, "location": location, "status": "RUNNING"}, ""))
        elif name == "node-pools.create":
            _create(parsed, state, f"pool/{cluster}/{parsed.name}")
        elif name == "node-pools.list":
            pools = [_view(one) for key, one in state["resources"].items() if key.startswith(f"pool/{cluster}/")]
            print(show(parsed, pools, "name status"))
        else:
            key = f"pool/{cluster}/{parsed.name}"
            if key not in state["resources"]:
                raise parsed.refuse(f'ResponseError: code=404, message=Not found: node pool "{parsed.name}" not found.')
            if name == "node-pools.describe":
                print(show(parsed, _view(state["resources"][key]), ""))
            else:
                del state["resources"][key]
                print(f"Deleting node pool {parsed.name}...done.", file=sys.stderr)
    time.sleep(state["settings"]["seconds"]["provision"] if name == "node-pools.create" else 0)
    return 0


def _create(parsed: Parsed, state: dict[str, Any], key: str) -> None:
    settings = state["settings"]
    if key in state["resources"]:
        raise parsed.refuse(f"ResponseError: code=409, message=Already exists: {key}.")
    machine = parsed.get("machine-type")
    topology = parsed.get("tpu-topology")
    if len(parsed.name) > 39:
        raise parsed.refuse("ResponseError: code=400, message=node_pool.name must be at most 39 characters.")
    if machine not in MACHINES:
        raise parsed.refuse(f'ResponseError: code=400, message=Invalid machine type "{machine}".')
    kind, chips = MACHINES[machine]
    zones = parsed.get("node-locations").split(",") if parsed.has("node-locations") else [parsed.get("location")]
    for zone in zones:
        if kind not in settings["zones"].get(zone, []):
            raise parsed.refuse(
                f'ResponseError: code=400, message=Machine type "{machine}" is not available in zone "{zone}": '
                "GCE_NOT_FOUND."
            )
    nodes = 1
    if topology:
        nodes = max(1, math.prod(map(int, topology.split("x"))) // chips)
    elastic = parsed.has("enable-autoscaling")
    wanted = int(parsed.get("max-nodes" if elastic else "num-nodes", str(nodes)))
    if parsed.get("num-nodes", "x") == "0" and elastic:
        wanted = int(parsed.get("max-nodes", "0"))
    if topology and wanted != nodes:
        raise parsed.refuse(
            f"ResponseError: code=400, message=The number of nodes {wanted} does not match the TPU topology {topology} "
            f"with {chips} chips per node, which needs {nodes}."
        )
    if parsed.get("reservation-affinity") == "specific" and parsed.get("reservation") not in settings["reservations"]:
        raise parsed.refuse(f"ResponseError: code=400, message=Reservation {parsed.get('reservation')} not found.")
    if parsed.has("flex-start") and (parsed.get("reservation-affinity") != "none" or not elastic):
        raise parsed.refuse(
            "ResponseError: code=400, message=Flex start node pools require autoscaling and reservation affinity NONE."
        )
    model = "spot" if parsed.has("spot") else "flex_start" if parsed.has("flex-start") else "on_demand"
    limit = settings["quota"].get(f"gce/{kind}/{'spot' if model == 'spot' else 'on_demand'}")
    if limit is not None and nodes * chips > limit:
        raise parsed.refuse(
            "ResponseError: code=403, message=Insufficient regional quota to satisfy request: resource "
            f"\"TPUS_PER_TPU_FAMILY\": request requires '{nodes * chips}.0' and is short '{nodes * chips - limit}.0'."
        )
    state["resources"][key] = {
        "kind": "pool", "name": parsed.name, "label": LABELS[kind], "topology": topology, "nodes": nodes,
        "chips": chips, "model": model,
        "zone": zones[0], "reservation": parsed.get("reservation"), "flags": parsed.flags,
    }  # fmt: skip
    print(f"Creating node pool {parsed.name}...done.", file=sys.stderr)


def _view(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": one["name"], "status": "RUNNING", "initialNodeCount": one["nodes"],
            "placementPolicy": {"tpuTopology": one["topology"]}}  # fmt: skip
