"""Files of JSON lines in a work folder and in an output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from qwenvl_jax.runtime import storage


def write_lines(path: epath.Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes one object per line, whole or not at all.

    The lines are ASCII, so that a text with half a surrogate pair can be written.
    """
    with storage.local_output(path) as temporary, temporary.open("w") as file:
        for value in values:
            file.write(json.dumps(value, sort_keys=True) + "\n")


def read_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """The objects of a file that `write_lines` wrote."""
    return [json.loads(line) for line in storage.read_bytes(path).splitlines()]
