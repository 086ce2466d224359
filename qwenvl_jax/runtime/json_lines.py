"""Files with one JSON object per line, such as the logs of a run: read as far as their lines can be trusted.

A kill cuts the last line short, a disk may damage any of them, and a person may edit them. So whoever reads a log takes
the lines that are whole objects, and of these the values that are what they should be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from qwenvl_jax.runtime import storage

MOST_STEPS = 2**31 - 1  # the devices count steps in int32
_LARGEST = 3.5e38  # figures come from float32


def whole_objects(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line with its line break, the object in it) of every line that holds a JSON object and nothing else."""
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield line, value


def read(path: epath.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """`whole_objects` of a file; none if there is no such file."""
    try:
        return list(whole_objects(storage.read_bytes(path)))
    except FileNotFoundError:
        return []


def number(value: Any) -> float | None:
    """The value if it is a number that a run can have measured; None for everything else, also for true and false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -_LARGEST <= value <= _LARGEST else None  # not if it is NaN


def numbers(value: Any) -> dict[str, float]:
    """The numbers of an object by their names, see `number`; {} for everything else."""
    if not isinstance(value, Mapping):
        return {}
    checked = {str(name): number(each) for name, each in value.items()}
    return {name: each for name, each in checked.items() if each is not None}


def step_of(line: Mapping[str, Any]) -> int | None:
    """The number of the step that a line of a log is about; None if it has none."""
    step = line.get("step")
    return step if type(step) is int and 0 <= step <= MOST_STEPS else None
