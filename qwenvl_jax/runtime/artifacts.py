"""Files that a run leaves behind: written whole or not at all, on a local disk or gs://."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def write_bytes(path: epath.PathLike, payload: bytes) -> None:
    """Writes `payload` whole or not at all; see `storage.write_bytes`."""
    storage.write_bytes(path, payload)


@contextlib.contextmanager
def undone_on_failure(folder: epath.PathLike) -> Iterator[None]:
    """Removes whatever the block has put into `folder`, and the folder if it made that, should the block fail."""
    folder = epath.Path(folder)
    before = storage.names(folder) if storage.is_folder(folder) else None
    try:
        yield
    except BaseException:
        if before is None:
            storage.remove(folder)
        else:
            for name in set(storage.names(folder)) - set(before):
                storage.remove(folder / name)
        raise


def replace_folder(source: epath.PathLike, target: epath.PathLike) -> None:
    """Gives a folder on a disk the name of another one, which is removed; at no moment are both gone.

    Killed half-way it may leave `.NAME.XXXXXXXX.old`, the folder that was there before.
    """
    target = storage.path(target)
    before = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
    replaced = storage.exists(target)
    if replaced:
        storage.rename(target, before)
    try:
        storage.rename(source, target)
    except BaseException:
        if replaced:
            storage.rename(before, target)
        raise
    storage.remove(before)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes UTF-8 `text` atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """Reads one JSON file.

    Raises:
      UserError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # JSON's own, and that of bytes that are no UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); write it again") from None
