"""A folder into which only one command may write."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.runtime import distributed, storage
from qwenvl_jax.runtime.errors import UserError


@contextlib.contextmanager
def claimed(folder: epath.PathLike) -> Iterator[None]:
    """Keeps other commands out of a folder while the block runs: process 0 locks the folder itself.

    The lock ends with the process, however that ends. Object stores and some network disks have no locks; on those
    the block runs without one.

    Raises:
      UserError: if another command has the folder.
    """
    held: list[int] = []

    def claim() -> None:
        if storage.is_remote(folder):
            return
        storage.make_folder(folder)
        held.append(os.open(folder, os.O_RDONLY))
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {folder}, and two would spoil each other's checkpoints; wait for its end, "
                "end it, or name another --workdir"
            ) from None
        except OSError:
            return  # a disk without locks

    try:
        distributed.from_primary(claim)
        yield
    finally:
        for file in held:
            os.close(file)
