"""Files that a run leaves behind: written whole or not at all, on a local disk or gs://."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from qwenvl_jax.runtime.errors import UserError


def write_bytes(path: epath.PathLike, payload: bytes) -> None:
    """Writes `payload` under a temporary name in the same folder, then renames it to `path`."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.write_bytes(payload)
        temporary.rename(path) if not path.exists() else temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def undone_on_failure(folder: epath.PathLike) -> Iterator[None]:
    """Removes whatever the block has put into `folder`, and the folder if it made that, should the block fail."""
    folder = epath.Path(folder)
    before = {path.name for path in folder.iterdir()} if folder.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            if folder.exists():
                folder.rmtree()
        else:
            for path in list(folder.iterdir()):
                if path.name not in before:
                    path.rmtree() if path.is_dir() else path.unlink()
        raise


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
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it again") from None
