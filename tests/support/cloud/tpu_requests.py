"""What the Cloud TPU API refuses before it makes anything: permissions, zones, accelerators, runtimes, quota."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.support.cloud.flags import Parsed

# Accelerator types by their first word: the kind of chip, and whether their number counts cores or chips.
TYPES = {"v4": ("v4", 2), "v5litepod": ("v5e", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
_RUNTIMES = {
    "v4": ("tpu-ubuntu2204-base",),
    "v5e": ("v2-alpha-tpuv5-lite",),
    "v5p": ("v2-alpha-tpuv5",),
    "v6e": ("v2-alpha-tpuv6e",),
}
_NODE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def check_request(parsed: Parsed, state: dict[str, Any], zone: str, api: str, runtime: str) -> int:
    """Refuses what the API refuses: permission, zone, accelerator, runtime, quota, reservation; the chips of a node."""
    permit(parsed, state, f"tpu.{api}.create", zone)
    if not _NODE_NAME.fullmatch(parsed.name):
        raise parsed.refuse(
            'INVALID_ARGUMENT: Cloud TPU received an invalid argument. The field "Node Id" cannot be '
            f'"{parsed.name}". Requirement: Must be a valid instance name that starts with a lowercase letter followed '
            "by up to 62 letters, numbers, or hyphens, and cannot end with a hyphen."
        )
    kind, chips, accelerator = accelerator_of(parsed)
    if zone not in state["settings"]["zones"]:
        raise parsed.refuse(
            f"PERMISSION_DENIED: Permission denied on 'locations/{zone}' (or it may not exist). This command is "
            f"authenticated as {state['settings']['account']} which is the active account specified by the "
            "[core/account] property."
        )
    if kind not in state["settings"]["zones"][zone]:
        raise parsed.refuse(
            f"INVALID_ARGUMENT: Cloud TPU received a bad request. the accelerator {accelerator} was not found in zone "
            f"{zone} [EID: 0x945ef875d10e8e13]"
        )
    if runtime not in _RUNTIMES[kind]:
        raise parsed.refuse(
            f'INVALID_ARGUMENT: Cloud TPU received a bad request. update runtime version, "{runtime}" is not '
            f'compatible with accelerator "{accelerator}" [EID: 0x1b6e0a1a9b1d4f24]'
        )
    spot = parsed.has("spot") or parsed.has("preemptible")
    if parsed.has("reserved") and not state["settings"]["reservations"]:
        raise parsed.refuse(
            f"FAILED_PRECONDITION: Reservation not found: the project has no reservation of {kind} in {zone} "
            "[EID: 0x7adf6d58c08b0aa4]"
        )
    limit = state["settings"]["quota"].get(f"tpu/{kind}/{'spot' if spot else 'on_demand'}")
    used = sum(
        one["chips"] * len(one.get("nodes", [1])) for one in state["resources"].values() if one["kind"] == "node"
    )
    wanted = chips * int(parsed.get("node-count", "1"))
    if limit is not None and used + wanted > limit:
        metric = f"TPU{kind.upper()}{'Preemptible' if spot else ''}PerProjectPerZoneForTPUAPI"
        raise parsed.refuse(
            f"RESOURCE_EXHAUSTED: Quota limit '{metric}' has been exceeded. Limit: {limit} in zone {zone}."
        )
    return chips


def accelerator_of(parsed: Parsed) -> tuple[str, int, str]:
    """The kind of chip, the chips of one node, and the accelerator's name."""
    if parsed.has("topology"):
        word = parsed.get("type")
        if word not in TYPES:
            raise parsed.refuse("INVALID_ARGUMENT: Cloud TPU received an invalid argument. Type must be specified.")
        kind, cores = TYPES[word]
        chips = 1
        for side in parsed.get("topology").split("x"):
            chips *= int(side)
        return kind, chips, f"{word}-{chips * cores}"
    accelerator = parsed.get("accelerator-type", "v2-8")
    word, _, number = accelerator.rpartition("-")
    if word not in TYPES or not number.isdecimal():
        raise parsed.refuse(
            f'INVALID_ARGUMENT: Cloud TPU received an invalid argument. The field "Accelerator Type" cannot be '
            f'"{accelerator}".'
        )
    kind, cores = TYPES[word]
    return kind, max(1, int(number) // cores), accelerator


def permit(parsed: Parsed, state: Mapping[str, Any], permission: str, zone: str) -> None:
    if permission in state["settings"]["denied"]:
        where = f"projects/{state['settings']['project']}/locations/{zone}"
        raise parsed.refuse(f"PERMISSION_DENIED: Permission '{permission}' denied on '{where}' (or it may not exist).")
