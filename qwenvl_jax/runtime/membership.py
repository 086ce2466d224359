"""Which of the processes of a run a process is, and the lines of JSON that they send one another."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Membership:
    """Which of the processes of a run this one is."""

    address: str  # host:port of process 0
    count: int
    index: int
    said_by: str  # the launcher or the variables that say so, for messages
    devices: list[int] | None = None  # the GPUs of this host that this process uses; None: all


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[host]:port`. Raises ValueError if it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(address)
    return host.removeprefix("[").removesuffix("]"), int(port)


def encoded(message: dict[str, Any]) -> bytes:
    """A message as a line of JSON."""
    return json.dumps(message).encode() + b"\n"
