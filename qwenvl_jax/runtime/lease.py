"""A lock on a folder of an object store, which has no locks: an object that its owner renews, the lease.

Every write of the object names the generation that it replaces, so of two processes one succeeds. The owner renews the
lease every `RENEWED` seconds. If it was not renewed for `EXPIRES` seconds, by the clock of the store, its owner counts
as gone: another process takes it over and says whose it was. On the machine of the former owner the system knows at
once that it is gone. The clocks of the machines play no part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable

from etils import epath

from qwenvl_jax.runtime import exit_codes, log
from qwenvl_jax.runtime.errors import StorageError, UserError

RENEWED = 10.0  # seconds
EXPIRES = 45.0  # seconds
NAME = "lock"
_POLL = 1.0  # seconds


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that has a lease.

    Attributes:
      token: no other process has it.
      host, pid: where it runs.
      machine: the boot and the process namespace, in which `pid` means this process.
    """

    token: str
    host: str
    pid: int
    machine: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"

    def gone(self) -> bool:
        """Whether it has surely ended: it ran on this machine, where no such process is left."""
        return self.machine == _machine() != "" and not os.path.exists(f"/proc/{self.pid}")


class Lease:
    """The lease on a folder, from `acquire` to `release`.

    Args:
      folder: on `gs://`.
      ended: called with a sentence if another process has taken the lease over; by default ends this process.
    """

    def __init__(self, folder: epath.PathLike, ended: Callable[[str], None] | None = None):
        from qwenvl_jax.runtime.gcs_store import Store  # gcsfs is not needed without gs://

        self._store = Store()
        self._path = f"{os.fspath(folder).rstrip('/')}/{NAME}"
        self._folder = folder
        self._owner = Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine())
        self._ended = ended or _end
        self._generation = "0"
        self._renewals = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Takes the lease; waits at most `EXPIRES` seconds to see whether its owner still renews it.

        Raises:
          UserError: if another process has it.
        """
        first: str | None = None
        while True:
            seen = self._store.read_with_age(self._path)
            generation, age, owner = ("0", 0.0, None) if seen is None else (seen[0], seen[1], _owner_of(seen[2]))
            if first is not None and generation != first:
                raise UserError(self._refusal(owner))
            if owner is None or owner.gone() or age > EXPIRES:
                if not self._write(generation):
                    continue  # another process was faster: look again, and wait for its next renewal
                if owner is not None:
                    log.line(f"{self._folder} was held by {owner}, which has been silent for {age:.0f} s; taken over")
                break
            if first is None:
                first = generation
                log.line(
                    f"{self._folder} is held by {owner}; waiting for at most {EXPIRES:.0f} s to see if it is alive"
                )
            time.sleep(_POLL)
        self._thread.start()

    def release(self) -> None:
        """Gives the lease back, so that the next process need not wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(StorageError):  # it expires
            self._write(self._generation, released=True)

    def _refusal(self, owner: Owner | None) -> str:
        return (
            f"another process trains in {self._folder} ({owner or 'it has just ended'}), and two would spoil each "
            "other's checkpoints; wait for its end, end it, or name another --workdir"
        )

    def _renew(self) -> None:
        while not self._stop.wait(RENEWED):
            try:
                if self._write(self._generation):
                    continue
            except StorageError:  # the store is away, for all; it may come back
                continue
            if not self._stop.is_set():
                seen = self._store.read_with_age(self._path)
                other = seen and _owner_of(seen[2])
                self._ended(
                    f"{other or 'another process'} has taken over {self._folder}, because this process was silent for "
                    f"more than {EXPIRES:.0f} s; it ends without writing anything"
                )
                return

    def _write(self, generation: str, *, released: bool = False) -> bool:
        """Replaces the object of a generation; False if it has another one by now."""
        self._renewals += 1
        facts = {**dataclasses.asdict(self._owner), "renewals": self._renewals, "released": released}
        payload = json.dumps({**facts, "time": time.time()}).encode()
        written = self._store.write_if(self._path, payload, generation)
        if written is None:  # perhaps an earlier attempt of the same request was carried out, and its answer was lost
            seen = self._store.read_with_age(self._path)
            if seen is None or seen[2] != payload:
                return False
            written = seen[0]
        self._generation = written
        return True


def _owner_of(payload: bytes) -> Owner | None:
    """The owner that the object names; None if it was given back, or is not a lease."""
    try:
        facts = json.loads(payload)
        if facts["released"]:
            return None
        return Owner(str(facts["token"]), str(facts["host"]), int(facts["pid"]), str(facts["machine"]))
    except (ValueError, LookupError, TypeError):
        return None


def _machine() -> str:
    """The boot of this machine and the namespace of its process numbers; "" if the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _end(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(exit_codes.MISTAKE)
