"""The rendezvous of a run's processes; afterwards each of them keeps its connection to process 0.

JAX connects processes that are all present. If one is missing, it waits for minutes and then aborts the others with a
stack trace of addresses; if the port is taken, it crashes; if a process dies later, the others keep waiting. So the
processes first meet over plain sockets, on the port that JAX uses afterwards. A process that is missing, comes twice or
belongs to another run is named. The sockets stay open (`connection.Connection`, and `coordinator.Coordinator` on
process 0). A process that fails reports it, the system closes the socket of a killed one, a stopped one sends no
heartbeats, and process 0 tells all others, which end with that sentence whatever they are waiting for.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from typing import Any

from qwenvl_jax.runtime.connection import Connection
from qwenvl_jax.runtime.coordinator import ANSWER, LAST_WORDS, Coordinator
from qwenvl_jax.runtime.errors import PeerError, UserError
from qwenvl_jax.runtime.membership import Membership, encoded, split_address


class _Foreign(Exception):
    """The answer did not come from process 0 of this run."""


def join(membership: Membership, seconds: float, silence: float) -> Connection:
    """Joins the run; returns once all processes of the run are there.

    Args:
      membership: which process this is.
      seconds: how long to wait for the others.
      silence: seconds after which a process without heartbeats counts as lost.

    Raises:
      PeerError: on every process if one is missing after `seconds`, comes twice or expects another number of them.
      UserError: if the address of process 0 cannot be used by process 0 itself.
    """
    coordinator = Coordinator(membership, seconds, silence) if membership.index == 0 else None
    deadline = time.monotonic() + seconds
    hello = {
        "process": membership.index,
        "of": membership.count,
        "host": socket.gethostname(),
        "token": uuid.uuid4().hex,
    }
    while True:
        try:
            sock, file = _greet(membership, hello)
            sock.settimeout(seconds + ANSWER)
            message = json.loads(file.readline() or '""')
            if message:
                break
            problem = "process 0 has gone again"
        except socket.gaierror:
            problem = "that name is not known here"
        except ConnectionRefusedError:
            problem = "nobody listens there"
        except TimeoutError:
            problem = "no answer from there"
        except _Foreign:
            problem = "something else than process 0 of this run answers there"
        except (OSError, ValueError) as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise _unreachable(membership, problem, seconds)
        time.sleep(0.2)
    if "stop" in message:
        sock.close()
        if coordinator:
            coordinator.alone.wait(LAST_WORDS)
        raise PeerError(message["stop"], message["code"])
    sock.settimeout(None)
    return Connection(sock, file, coordinator, membership, silence)


def _greet(membership: Membership, hello: dict[str, Any]) -> tuple[socket.socket, Any]:
    host, port = split_address(membership.address)
    sock = socket.create_connection((host, port), timeout=ANSWER)
    _keep_alive(sock)
    try:
        sock.sendall(encoded(hello))
        file = sock.makefile("r", encoding="utf-8", errors="replace", newline="\n")
        try:
            heard = json.loads(file.readline(1000))
        except ValueError:
            heard = None
        if heard != {"heard": True}:
            raise _Foreign
    except BaseException:
        sock.close()
        raise
    return sock, file


def _unreachable(membership: Membership, problem: str, seconds: float) -> Exception:
    address, said_by = membership.address, membership.said_by
    if membership.index == 0:
        return UserError(
            f"process 0 does not find itself at {address} ({problem}), the address from {said_by}; set "
            "JAX_COORDINATOR_ADDRESS to an address of the host of process 0, with a free port, on all processes"
        )
    return PeerError(
        f"process {membership.index} of {membership.count} did not reach process 0 at {address} within {seconds:.0f} s "
        f"({problem}); start all processes at about the same time, and see that this address, from {said_by}, is that "
        "of process 0 and its port open to the others"
    )


def _keep_alive(sock: socket.socket) -> None:
    """A packet a minute: firewalls forget connections that are silent for longer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
