"""The roll call of a run's processes, and the connection that each of them keeps to process 0.

JAX connects processes that are all present. If one is missing, it waits for minutes and then aborts the others with a
stack trace of addresses; if the port is taken, it crashes; if a process dies later, the others keep waiting. So the
processes first call the roll over plain sockets, on the port that JAX uses afterwards. A process that is missing, comes
twice or belongs to another run is named. The sockets stay open. A process that fails reports it, the system closes the
socket of a killed one, and process 0 tells all others, which end with that sentence whatever they are waiting for.

Messages are lines of JSON. To process 0: who calls; then `failed` (a sentence, and the exit code) or `done`. From it:
`heard`; then `complete`, `stop` (a sentence, and the exit code) or `done`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import resource
import socket
import sys
import threading
import time
import uuid
from typing import Any, NamedTuple

from qwenvl_jax.runtime.errors import PeerError, UserError
from qwenvl_jax.runtime.exit_codes import MISTAKE, RETRY

ANSWER = 5.0  # seconds for the first answer of process 0, which does nothing else in that time
GRACE = 2.0  # seconds in which a process may end with its error before the error of another process ends it
LAST_WORDS = 5.0  # seconds for which process 0 stays so that the others learn why the run has ended
SHOWN = 8  # the most missing processes that are named
LONGEST = 8000  # characters of a sentence


@dataclasses.dataclass(frozen=True)
class Membership:
    """Which of the processes of a run this one is."""

    address: str  # host:port of process 0
    count: int
    index: int
    said_by: str  # the launcher or the variables that say so, for messages
    devices: list[int] | None = None  # the GPUs of this host that this process uses; None: all


class _Foreign(Exception):
    """The answer did not come from process 0 of this run."""


class _Member(NamedTuple):
    """A process that has called."""

    token: str
    host: str
    writer: asyncio.StreamWriter


class Desk:
    """Process 0's side: calls the roll, then passes on who has failed. Works on a separate thread.

    Raises:
      UserError: if the port of the run's address cannot be used on this host.
    """

    def __init__(self, membership: Membership, seconds: float):
        self._membership, self._seconds = membership, seconds
        self._members: dict[int, _Member] = {}
        self._done: set[int] = set()
        self._complete = False
        self._stopped: dict[str, Any] | None = None  # what all have been told
        self.alone = threading.Event()  # set once all others have gone
        self._socket = _listen(membership)
        _allow_files(membership.count)
        threading.Thread(target=asyncio.run, args=(self._work(),), name="roll call", daemon=True).start()

    async def _work(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket, backlog=4096)
        asyncio.get_running_loop().call_later(self._seconds, self._give_up)
        await asyncio.Event().wait()  # the thread ends with its process

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), ANSWER))
            index, member = hello["process"], _Member(hello["token"], hello["host"], writer)
            count = hello["of"]
        except (OSError, ValueError, KeyError, TypeError, TimeoutError):
            writer.close()  # a probe, a browser
            return
        before = self._members.get(index)
        self._members[index] = member
        _send(writer, {"heard": True})
        if count != self._membership.count:
            self._stop(
                f"process {index} (host {member.host}) was told of {count} processes, process 0 of "
                f"{self._membership.count}; give all of them the same number"
            )
        elif before is not None and before.token != member.token:
            self._stop(
                f"two processes call themselves process {index} of {count} (hosts {before.host} and {member.host}); "
                "give every process a number of its own, and every run an address of its own",
                before,
            )
        elif self._stopped:
            _send(writer, self._stopped)
        elif len(self._members) == count:
            self._complete = True
            self._server.close()  # JAX takes the port
            for other in self._members.values():
                _send(other.writer, {"complete": True})
        ended = True
        try:
            while line := await reader.readline():
                self._hear(index, member, json.loads(line))
        except ConnectionError:
            pass
        except OSError:  # the network is gone, not the process; JAX's own heartbeats decide
            ended = False
        if self._members.get(index) is member:
            del self._members[index]
            if ended and self._complete and index not in self._done:
                where = f"process {index} (host {member.host})"
                self._stop(f"{where} ended without a word; its own output may say why", code=RETRY)
        if not self._members.keys() - {self._membership.index}:
            self.alone.set()
        writer.close()

    def _hear(self, index: int, member: _Member, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._stop(f"{message['failed']} (process {index}, host {member.host})", code=message["code"])
        elif "done" in message:
            self._done.add(index)
            if index == self._membership.index:  # nobody is left to pass words on
                for other in self._members.values():
                    _send(other.writer, {"done": True})

    def _give_up(self) -> None:
        if self._complete or self._stopped:
            return
        missing = [index for index in range(self._membership.count) if index not in self._members]
        names = ", ".join(map(str, missing[:SHOWN])) + (f" and {len(missing) - SHOWN} more" if missing[SHOWN:] else "")
        self._stop(
            f"{len(self._members)} of {self._membership.count} processes ({self._membership.said_by}) came within "
            f"{self._seconds:.0f} s, missing: {names}; start all of them at about the same time (QWENVL_JOIN_SECONDS "
            "gives them longer), or set JAX_NUM_PROCESSES=1 to run one alone",
            code=RETRY,
        )

    def _stop(self, sentence: str, *others: _Member, code: int = MISTAKE) -> None:
        if self._stopped is None:
            self._stopped = {"stop": sentence[:LONGEST], "code": code}
            for member in (*self._members.values(), *others):
                _send(member.writer, self._stopped)


class Line:
    """This process's line to process 0."""

    def __init__(self, connection: socket.socket, file: Any, desk: Desk | None):
        self._connection, self._file, self._desk = connection, file, desk
        self._ending = threading.Event()  # this process ends by itself
        self._told = threading.Event()  # why all end is known
        self._stop = ("", 0)
        threading.Thread(target=self._watch, name="line to process 0", daemon=True).start()

    def cause(self) -> tuple[str, int] | None:
        """Why another process has ended the run (a sentence, and the exit code), for one whose own error may follow.

        Where one is gone, the computations of the others fail too, often before they hear of it.
        """
        self._ending.set()
        return self._stop if self._told.wait(GRACE) else None

    def fail(self, sentence: str, code: int) -> None:
        """Has all others end with this sentence; returns when they know."""
        self._ending.set()
        with contextlib.suppress(OSError):
            self._connection.sendall(_encoded({"failed": sentence[:LONGEST], "code": code}))
            self._told.wait(LAST_WORDS)
        if self._desk:
            self._desk.alone.wait(LAST_WORDS)

    def done(self) -> None:
        """Says that this process ends in good order, and listens no more."""
        self._ending.set()
        with contextlib.suppress(OSError):
            self._connection.sendall(_encoded({"done": True}))

    def _watch(self) -> None:
        try:
            for line in self._file:
                message = json.loads(line)
                if "done" in message:
                    return
                if "stop" in message:
                    self._end(message["stop"], message["code"])
                    return
        except ConnectionError:
            pass
        except OSError:
            return  # as in the desk: no sign that the other has ended
        self._end("process 0 ended without a word; its own output may say why", RETRY)

    def _end(self, sentence: str, code: int) -> None:
        """Ends this process, which may be waiting for others anywhere, in the middle of a device computation too."""
        self._stop = (sentence, code)
        self._told.set()
        if self._ending.wait(GRACE):
            return
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        if self._desk:
            self._desk.alone.wait(LAST_WORDS)
        os._exit(code)


def call(membership: Membership, seconds: float) -> Line:
    """Answers the roll call; returns once all processes of the run are there.

    Raises:
      PeerError: on every process if one is missing after `seconds`, comes twice or expects another number of them.
      UserError: if the address of process 0 cannot be used by process 0 itself.
    """
    desk = Desk(membership, seconds) if membership.index == 0 else None
    deadline = time.monotonic() + seconds
    hello = {
        "process": membership.index,
        "of": membership.count,
        "host": socket.gethostname(),
        "token": uuid.uuid4().hex,
    }
    while True:
        try:
            connection, file = _greet(membership, hello)
            connection.settimeout(seconds + ANSWER)
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
        connection.close()
        if desk:
            desk.alone.wait(LAST_WORDS)
        raise PeerError(message["stop"], message["code"])
    connection.settimeout(None)
    return Line(connection, file, desk)


def _greet(membership: Membership, hello: dict[str, Any]) -> tuple[socket.socket, Any]:
    host, port = split_address(membership.address)
    connection = socket.create_connection((host, port), timeout=ANSWER)
    _keep_alive(connection)
    try:
        connection.sendall(_encoded(hello))
        file = connection.makefile("r", encoding="utf-8", errors="replace", newline="\n")
        try:
            heard = json.loads(file.readline(1000))
        except ValueError:
            heard = None
        if heard != {"heard": True}:
            raise _Foreign
    except BaseException:
        connection.close()
        raise
    return connection, file


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


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[host]:port`. Raises ValueError if it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(address)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(membership: Membership) -> socket.socket:
    """A socket on the port of the run's address, on all networks of this host, as JAX's own."""
    port = split_address(membership.address)[1]
    deadline = time.monotonic() + ANSWER
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"port {port} cannot be used on this host ({error.strerror}); choose another") from None
        if time.monotonic() > deadline:  # an earlier attempt of the same run would have ended by now
            raise UserError(
                f"port {port}, on which process 0 waits for the others, is taken on this host; end what uses it, or "
                "choose another (JAX_COORDINATOR_PORT, or the port of JAX_COORDINATOR_ADDRESS, on all processes)"
            )
        time.sleep(0.5)


def _allow_files(count: int) -> None:
    """Raises the limit of open files by one connection per process; 1,024 in all is a common default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or wanted <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _keep_alive(connection: socket.socket) -> None:
    """A packet a minute: firewalls forget connections that are silent for longer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(_encoded(message))
