"""Process 0's end of the connections that all processes of a run keep to it (`connection`).

It waits for all of them, notices who fails, who is gone and who falls silent, and tells all others.

Messages are lines of JSON. To process 0: who calls; then `heartbeat` (what the process does, every few seconds),
`hung` (how long no step has ended), `failed` (a sentence, and the exit code) or `done`. From it: `heard`; then
`complete`; then `heartbeat` (its time, as the answer to one), `stop` (a sentence, and the exit code) or `done`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import socket
import threading
import time
from typing import Any, NamedTuple

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.exit_codes import MISTAKE, RETRY
from qwenvl_jax.runtime.membership import Membership, encoded, split_address

ANSWER = 5.0  # seconds for the first answer of process 0, which does nothing else in that time
LAST_WORDS = 5.0  # seconds for which process 0 stays so that the others learn why the run has ended
HEARTBEATS = 12  # in the time after which a silent process counts as lost
SHOWN = 8  # the most missing processes that are named
LONGEST = 8000  # characters of a sentence


class _Member(NamedTuple):
    """A process that has called."""

    token: str
    host: str
    writer: asyncio.StreamWriter


class Coordinator:
    """Waits for all processes, then passes on who has failed or is lost. Works on a separate thread.

    Args:
      membership: of process 0.
      seconds: how long to wait for all processes.
      silence: seconds without a heartbeat after which a process counts as lost.

    Raises:
      UserError: if the port of the run's address cannot be used on this host.
    """

    def __init__(self, membership: Membership, seconds: float, silence: float):
        self._membership = membership
        self._seconds = seconds
        self._silence = silence
        self._members: dict[int, _Member] = {}
        self._done: set[int] = set()
        self._missed: dict[int, int] = {}  # heartbeats that did not come, by process
        self._activities: dict[int, dict[str, Any]] = {}  # what the processes do, as their last heartbeats say
        self._complete = False
        self._stopped: dict[str, Any] | None = None  # what all have been told
        self.alone = threading.Event()  # set once all others have gone
        self._socket = _listen(membership)
        _allow_files(membership.count)
        threading.Thread(target=asyncio.run, args=(self._work(),), name="coordinator", daemon=True).start()

    def host(self, index: int) -> str | None:
        """The host of a process that has called."""
        member = self._members.get(index)
        return member.host if member else None

    async def _work(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket, backlog=4096)
        asyncio.get_running_loop().call_later(self._seconds, self._give_up)
        while True:  # the thread ends with its process
            await asyncio.sleep(self._silence / HEARTBEATS)
            if self._complete and self._stopped is None:
                self._count_beats()

    def _count_beats(self) -> None:
        """Stops the run if a process is silent. It counts heartbeats, because this process may have stood still."""
        for index in sorted(self._members.keys() - self._done - {self._membership.index}):
            self._missed[index] = self._missed.get(index, 0) + 1
            if self._missed[index] > HEARTBEATS:
                self._stop(
                    f"process {index} (host {self._members[index].host}) has not answered for {self._silence:.0f} s; "
                    "it was stopped, or its machine or network is gone: run the same command again",
                    code=RETRY,
                    stacks=True,
                )
                return

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
        silent = False
        try:
            while line := await reader.readline():
                self._hear(index, member, json.loads(line))
        except ConnectionError:
            pass
        except OSError:  # the network is gone, not the process: the heartbeats that do not come decide
            silent = self._complete and index not in self._done
        if not silent and self._members.get(index) is member:
            del self._members[index]
            if self._complete and index not in self._done:
                where = f"process {index} (host {member.host})"
                self._stop(f"{where} ended without a word; its own output may say why", code=RETRY)
        if not self._members.keys() - {self._membership.index}:
            self.alone.set()
        writer.close()

    def _hear(self, index: int, member: _Member, message: dict[str, Any]) -> None:
        if "heartbeat" in message:
            self._missed[index] = 0
            self._activities[index] = message["heartbeat"]
            _send(member.writer, {"heartbeat": time.time()})
        elif "hung" in message:
            self._activities[index] = message["activity"]
            self._judge(message["hung"])
        elif "failed" in message:
            self._stop(f"{message['failed']} (process {index}, host {member.host})", code=message["code"])
        elif "done" in message:
            self._done.add(index)
            if index == self._membership.index:  # nobody is left to pass words on
                for other in self._members.values():
                    _send(other.writer, {"done": True})

    def _judge(self, seconds: float) -> None:
        """Stops the run because no step has ended for so long, unless a process does what may take longer.

        A checkpoint that is overdue on one process stops it in any case: the others may wait for that process.
        """
        at_work = {index: self._activities.get(index, {}) for index in self._members.keys() - self._done}
        overdue = sorted(index for index, activity in at_work.items() if activity.get("overdue"))
        if overdue:
            where = f"process {overdue[0]} (host {self._members[overdue[0]].host})"
            self._stop(
                f"the run hangs: {at_work[overdue[0]]['overdue']} on {where}; run the same command again",
                code=RETRY,
                stacks=True,
            )
            return
        if any(activity.get("unlimited", True) for activity in at_work.values()):
            return
        behind = min(activity["step"] for activity in at_work.values())
        ahead = max(activity["step"] for activity in at_work.values())
        late = sorted(index for index, activity in at_work.items() if activity["step"] == behind)
        names = ", ".join(f"{index} (host {self._members[index].host})" for index in late[:SHOWN])
        names += f" and {len(late) - SHOWN} more" if late[SHOWN:] else ""
        phases = sorted({at_work[index]["phase"] for index in late} - {""})
        doing = f", in the phase {phases[0]!r}" if len(phases) == 1 else ""
        if behind == ahead:
            who = f"no process came beyond step {behind}{doing}"
        else:
            who = f"process{'es' * (len(late) > 1)} {names} did not come beyond step {behind}{doing}"
        self._stop(
            f"the run hangs: no step has ended for {seconds:.0f} s, and {who}; run the same command again",
            code=RETRY,
            stacks=True,
        )

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

    def _stop(self, sentence: str, *others: _Member, code: int = MISTAKE, stacks: bool = False) -> None:
        if self._stopped is None:
            self._stopped = {"stop": sentence[:LONGEST], "code": code, "stacks": stacks}
            for member in (*self._members.values(), *others):
                _send(member.writer, self._stopped)


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


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(encoded(message))
