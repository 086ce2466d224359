"""One of several processes that take a training step on an odd mesh whose rows are scattered over them.

Usage: scattered_rows.py ADDRESS PROCESSES INDEX. Twelve devices form a mesh of data 3 x fsdp 4, laid
out so that neighbours are of different processes. Every process copies the rows of its streams to its devices;
process 0 compares the step with that of one device.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.data.schema import Batch
from qwenvl_jax.sharding.batch import local_streams, put_batch
from qwenvl_jax.sharding.mesh import AXES
from qwenvl_jax.sharding.rules import replicated
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step
from tests.multidevice import any_mesh

# 8 groups of 3 rows on 12 devices of 2: neither divides the other. 4 streams on 3 processes do not divide either.
CASE = any_mesh.Case(1, 3, 4, 1, 2, 24, 8, 4, 1.25, any_mesh.ALL, 0, 7)


def part_of(batch: Batch, streams: list[int], count: int) -> Batch:
    """The rows and images of some streams, as a process's loader makes them."""

    def cut(field: np.ndarray) -> np.ndarray:
        parts = field.reshape(field.shape[0], count, -1, *field.shape[2:])[:, streams]
        return parts.reshape(field.shape[0], -1, *field.shape[2:])

    return Batch(*map(cut, batch))


def main(address: str, processes: int, index: int) -> None:
    jax.distributed.initialize(address, processes, index)
    config = any_mesh.config_of(CASE)
    devices = np.asarray(jax.devices(), dtype=object).reshape(jax.process_count(), -1)
    mesh = Mesh(devices.T.reshape(CASE.data, CASE.fsdp, CASE.tensor), AXES)
    streams = local_streams(config.data, mesh)
    whole = any_mesh.batch_of(CASE, config.data)

    def gathered(tree: Any) -> Any:
        whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)

    batch = put_batch(part_of(whole, streams, config.data.streams), config.data, mesh)
    step_fn = make_train_step(config, mesh, abstract_state(config, mesh))
    state, metrics = step_fn(any_mesh.fresh_state(config, mesh), batch)
    state, metrics = gathered(state), gathered(metrics)
    if jax.process_index() == 0:
        one, one_mesh, one_step = any_mesh.reference_step(CASE.trainable)
        joined = jax.device_put(any_mesh.as_one_group(whole, config.data), jax.local_devices()[0])
        expected = any_mesh.answers_of_step(one_step, any_mesh.fresh_state(one, one_mesh), joined)
        worst: dict[str, float] = {}
        any_mesh.compare(any_mesh.answers_of_step(lambda *_: (state, metrics), state, whole), expected, worst)
        print(json.dumps({"streams": streams, "of": config.data.streams, "worst": worst}))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
