"""The sums of a state whose leaves are split over the devices of two processes."""

from __future__ import annotations

from pathlib import Path

from tests.runtime.processes import joined, parents

CODE = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from qwenvl_jax.checkpoint import checksums
from qwenvl_jax.runtime import distributed
distributed.initialize()
split = NamedSharding(jax.make_mesh((4,), ("fsdp",)), PartitionSpec("fsdp"))
values = {str(n): np.arange(n, n + 4 * (n % 3 + 1), dtype=np.float32) for n in range(200)}
tree = {
    name: jax.make_array_from_callback(value.shape, split, value.__getitem__) for name, value in values.items()
}
assert checksums.sums(tree) == {name: checksums.host_sum(value) for name, value in values.items()}
"""
TWO_DEVICES = {
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


def test_two_processes_sum_hundreds_of_leaves_and_do_not_block_one_another(tmp_path: Path) -> None:
    for parent in parents(tmp_path, **TWO_DEVICES):
        for ended in parent.run(CODE, joined(2), timeout=60):
            assert ended.code == 0, ended.err
