"""Where a program may fetch values from its devices, and where that would be a mistake.

To fetch a value is to wait for the step that computes it, and the devices then wait for the host. The training loop
fetches at log steps, checkpoints and evaluations only. `refused` lets a run prove that: any other fetch is an error.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import jax

_thread = threading.local()


@contextlib.contextmanager
def refused(unless: bool = False) -> Iterator[None]:
    """Refuses to fetch values from devices while the block runs, in this thread alone.

    Args:
      unless: true if the block may fetch what it likes.

    Raises:
      RuntimeError: if the block fetches a value; on a CPU also from JAX's `float`, `bool`, `tolist`, `device_get` and
        printing, while `numpy.asarray` of an array on one CPU device only looks at memory and is no fetch.
    """
    if unless:
        yield
        return
    if jax.default_backend() == "cpu":
        _watch_cpu_arrays()
    before = getattr(_thread, "refused", False)
    _thread.refused = True
    try:
        with jax.transfer_guard_device_to_host("disallow_explicit"):
            yield
    finally:
        _thread.refused = before


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Allows the block to fetch values, also within a block of `refused`."""
    before = getattr(_thread, "refused", False)
    _thread.refused = False
    try:
        with jax.transfer_guard_device_to_host("allow"):
            yield
    finally:
        _thread.refused = before


@functools.cache
def _watch_cpu_arrays() -> None:
    """Lets arrays on CPUs ask this module as well: JAX's own guard does not see them, they are the host's memory."""
    from jax._src.array import ArrayImpl

    kind: Any = ArrayImpl
    fetch = kind._value.fget

    def value(array: Any) -> Any:
        if getattr(_thread, "refused", False):
            raise RuntimeError(
                "a value was fetched from the devices between log steps, so that they would wait for the host"
            )
        return fetch(array)

    kind._value = property(value)
