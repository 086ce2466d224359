"""Joining the processes of a run, one per host."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def several_processes(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several, as Cloud TPU, Slurm, Open MPI or JAX's own variables say."""
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    counts = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    return any(environment.get(name, "1") not in ("", "0", "1") for name in counts)


def initialize() -> None:
    """Connects to the other processes if there are any; call it before anything touches a device.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are used when all are set; otherwise JAX asks
    the cluster it finds itself on.
    """
    if not several_processes(os.environ):
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if all(name in os.environ for name in names):
        address, count, index = (os.environ[name] for name in names)
        jax.distributed.initialize(address, int(count), int(index))
    else:
        jax.distributed.initialize()


def is_primary() -> bool:
    """Whether this process writes logs, tables and JSON files."""
    return jax.process_index() == 0


def gather(value: Any, after: Any) -> list[Any]:
    """The JSON value of every process, on every process; all of them must call it, in the same order.

    Waits until `after`, what the devices compute now, is done: on CPUs two programs that wait for other processes can
    block one another.
    """
    if jax.process_count() == 1:
        return [value]
    jax.block_until_ready(after)
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, sizes.max() - text.size)))
    return [json.loads(own[:size].tobytes()) for own, size in zip(texts, sizes, strict=True)]
