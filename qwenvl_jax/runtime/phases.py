"""What the main thread of this process is doing, for those who watch it from other threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple


class Phase(NamedTuple):
    """A part of the work between two steps.

    Attributes:
      name: for messages.
      unlimited: whether the phase may take any time: it compiles, or it waits for storage that has limits of its own.
    """

    name: str
    unlimited: bool = False


NO_PHASE = Phase("")
_open: list[Phase] = []


@contextlib.contextmanager
def phase(name: str, *, unlimited: bool = False) -> Iterator[None]:
    """Marks what the main thread does while the block runs; inner phases hide outer ones, but not their `unlimited`."""
    outer = current()
    _open.append(Phase(name, unlimited or outer.unlimited))
    try:
        yield
    finally:
        _open.pop()


def current() -> Phase:
    """The innermost phase, also for other threads."""
    try:
        return _open[-1]
    except IndexError:
        return NO_PHASE
