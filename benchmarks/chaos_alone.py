"""Trains as one process whose collectives are those of several: `python -m benchmarks.chaos_alone HOST:PORT FLAGS..`"""

from __future__ import annotations

import runpy
import sys

import jax

from qwenvl_jax.runtime import distributed


def main() -> None:
    """Joins itself at the address, then runs the trainer with the other arguments."""
    timeout = distributed.JAX_HEARTBEAT_TIMEOUT
    jax.distributed.initialize(
        sys.argv[1], 1, 0, cluster_detection_method="deactivate", heartbeat_timeout_seconds=timeout
    )
    sys.argv = ["qwenvl_jax.train", *sys.argv[2:]]
    runpy.run_module("qwenvl_jax.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
