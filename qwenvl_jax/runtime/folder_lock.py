"""A lock on a folder of a disk; it ends with the process that has it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


@contextlib.contextmanager
def locked(folder: epath.PathLike, refusal: str, *, tell: Callable[[str], Any] | None = None) -> Iterator[bool]:
    """Locks a folder, which is made if it is missing, while the block runs; gives whether there is a lock.

    Object stores and some network disks have no locks; on those the block runs without one.

    Args:
      folder: on a disk or an object store.
      refusal: what is said if another process has the lock.
      tell: gets that text, and then the lock is waited for; None raises instead.

    Raises:
      UserError: with the text `refusal`, if another process has the lock.
    """
    held = lock(folder, refusal, tell=tell)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


@contextlib.contextmanager
def removed_if_empty(folder: epath.PathLike) -> Iterator[None]:
    """Removes a folder of a disk after the block if nothing is in it, so that a run that is refused leaves none.

    It belongs within `locked`: around it, it would remove the empty folder that another process has locked.
    """
    try:
        yield
    finally:
        if not storage.is_remote(folder):
            with contextlib.suppress(OSError):  # it holds something, perhaps since a moment ago, or is not there
                os.rmdir(folder)


def lock(folder: epath.PathLike, refusal: str, *, tell: Callable[[str], Any] | None = None) -> int | None:
    """The descriptor whose end is the end of the lock; None if there are no locks. See `locked`."""
    if storage.is_remote(folder):
        return None
    while True:
        try:
            storage.make_folder(folder)
        except FileExistsError:
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise
            continue  # another process has removed it while this one looked
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process has removed it since
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if tell is None:
                os.close(held)
                raise UserError(refusal) from None
            tell(refusal)
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:
            os.close(held)
            return None
        if _is_named(held, folder):
            return held
        os.close(held)  # the process that had the lock has removed the folder


def _is_named(held: int, folder: epath.PathLike) -> bool:
    try:
        return os.path.samestat(os.fstat(held), os.stat(folder))
    except FileNotFoundError:
        return False
