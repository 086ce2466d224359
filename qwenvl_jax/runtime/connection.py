"""The connection to process 0 that every process keeps until the end of the run; `coordinator` is its other end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from qwenvl_jax.runtime.coordinator import HEARTBEATS, LAST_WORDS, LONGEST, Coordinator
from qwenvl_jax.runtime.exit_codes import RETRY
from qwenvl_jax.runtime.membership import Membership, encoded

GRACE = 2.0  # seconds in which a process may end with its error before the error of another process ends it
UNKNOWN = {"step": 0, "phase": "", "unlimited": True, "overdue": ""}  # what a process without a watchdog does


class Connection:
    """This process's connection to process 0.

    Attributes:
      activity: what this process does, for process 0: `step`, `phase`, `unlimited` if the phase may take any time, and
        `overdue`, which says what takes too long all the same, or is empty.
      write_stacks: is called before this process ends because a process hangs or is lost.
    """

    def __init__(
        self, sock: socket.socket, file: Any, coordinator: Coordinator | None, membership: Membership, silence: float
    ):
        self._socket = sock
        self._file = file
        self._coordinator = coordinator
        self._membership = membership
        self._silence = silence
        self._sending = threading.Lock()
        self._missed = 0  # heartbeats without an answer
        self._sent = (0.0, 0.0)  # the last heartbeat: monotonic time, wall clock
        self._clock: tuple[float, float] | None = None  # seconds of the quickest answer, and by how much we are ahead
        self._answered = threading.Event()
        self._ending = threading.Event()  # this process ends by itself
        self._told = threading.Event()  # why all end is known
        self._noted = threading.Event()  # the stacks are written, if they have to be
        self._stop = ("", 0)
        self.activity: dict[str, Any] = UNKNOWN
        self.write_stacks: Callable[[], None] | None = None
        threading.Thread(target=self._watch, name="connection to process 0", daemon=True).start()
        threading.Thread(target=self._send_heartbeats, name="heartbeats to process 0", daemon=True).start()

    def clock_offset(self, seconds: float) -> float | None:
        """By how many seconds this host's clock is ahead of that of process 0; None without an answer in `seconds`."""
        self._answered.wait(seconds)
        return self._clock and self._clock[1]

    def host(self, index: int) -> str | None:
        """The host of a process; known to process 0 alone."""
        return self._coordinator.host(index) if self._coordinator else None

    def hung(self, seconds: float) -> None:
        """Reports that no step has ended for so long, or what is overdue; process 0 decides whether the run ends."""
        self._send({"hung": seconds, "activity": self.activity})

    def cause(self) -> tuple[str, int] | None:
        """Why another process has ended the run (a sentence, and the exit code), for one whose own error may follow.

        If one is gone, the computations of the others fail too, often before they hear of it.
        """
        self._ending.set()
        if not self._told.wait(GRACE):
            return None
        self._noted.wait()
        return self._stop

    def fail(self, sentence: str, code: int) -> None:
        """Has all others end with this sentence; returns when they know."""
        self._ending.set()
        if self._send({"failed": sentence[:LONGEST], "code": code}):
            self._told.wait(LAST_WORDS)
        if self._coordinator:
            self._coordinator.alone.wait(LAST_WORDS)

    def done(self) -> None:
        """Says that this process ends in good order, and listens no more."""
        self._ending.set()
        self._send({"done": True})

    def _send(self, message: dict[str, Any]) -> bool:
        with contextlib.suppress(OSError), self._sending:
            self._socket.sendall(encoded(message))
            return True
        return False

    def _send_heartbeats(self) -> None:
        """Sends heartbeats; ends this process if process 0 answers none. They are counted, as by the coordinator."""
        while not self._ending.is_set() and not self._told.is_set():
            if self._missed > HEARTBEATS:
                host = self._membership.address.rpartition(":")[0]
                self._end(
                    f"process 0 ({host}) has not answered for {self._silence:.0f} s; it was stopped, or its machine or "
                    "network is gone: run the same command again",
                    RETRY,
                    stacks=True,
                )
                return
            self._missed += 1
            self._sent = (time.monotonic(), time.time())
            self._send({"heartbeat": self.activity})
            self._ending.wait(self._silence / HEARTBEATS)

    def _watch(self) -> None:
        try:
            for line in self._file:
                message = json.loads(line)
                if "heartbeat" in message:
                    self._hear(message["heartbeat"])
                if "done" in message:
                    self._ending.set()  # process 0 answers no more
                    return
                if "stop" in message:
                    self._end(message["stop"], message["code"], stacks=message.get("stacks", False))
                    return
        except ConnectionError:
            pass
        except OSError:
            return  # as for the coordinator: no sign that the other has ended
        self._end("process 0 ended without a word; its own output may say why", RETRY)

    def _hear(self, now: float) -> None:
        """Takes the answer to the last heartbeat."""
        self._missed = 0
        sent, clock = self._sent
        seconds = time.monotonic() - sent
        if self._clock is None or seconds <= self._clock[0]:
            self._clock = (seconds, clock + seconds / 2 - now)
        self._answered.set()

    def _end(self, sentence: str, code: int, *, stacks: bool = False) -> None:
        """Ends this process, which may be waiting for others anywhere, in the middle of a device computation too."""
        if self._told.is_set():
            return
        self._stop = (sentence, code)
        self._told.set()
        if stacks and self.write_stacks:
            self.write_stacks()
        self._noted.set()
        if self._ending.wait(GRACE):
            return
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        if self._coordinator:
            self._coordinator.alone.wait(LAST_WORDS)
        os._exit(code)
