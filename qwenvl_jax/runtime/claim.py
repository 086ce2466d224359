"""A folder into which only one training run may write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.folder_lock import lock


@contextlib.contextmanager
def claimed(folder: epath.PathLike) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs: process 0 locks the folder itself (`folder_lock`).

    Raises:
      UserError: if another run has the folder.
    """
    held: list[int | None] = []
    refusal = (
        f"another process trains in {folder}, and two would spoil each other's checkpoints; wait for its end, "
        "end it, or name another --workdir"
    )
    try:
        distributed.from_primary(lambda: held.append(lock(folder, refusal)))
        yield
    finally:
        for file in held:
            if file is not None:
                os.close(file)
