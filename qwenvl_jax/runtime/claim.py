"""A folder into which only one training run may write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.runtime import distributed, storage
from qwenvl_jax.runtime.folder_lock import lock
from qwenvl_jax.runtime.lease import Lease


@contextlib.contextmanager
def claimed(folder: epath.PathLike) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs.

    Process 0 locks the folder itself on a disk (`folder_lock`), and keeps a lease on an object store (`lease`).

    Raises:
      UserError: if another run has the folder.
    """
    held: list[int | None] = []
    leases: list[Lease] = []
    refusal = (
        f"another process trains in {folder}, and two would spoil each other's checkpoints; wait for its end, "
        "end it, or name another --workdir"
    )

    def claim() -> None:
        if storage.is_remote(folder):
            lease = Lease(folder)
            lease.acquire()
            leases.append(lease)
        else:
            held.append(lock(folder, refusal))

    try:
        distributed.from_primary(claim)
        yield
    finally:
        for lease in leases:
            lease.release()
        for file in held:
            if file is not None:
                os.close(file)
