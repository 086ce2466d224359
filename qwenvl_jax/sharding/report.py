"""How the parameters lie on the mesh: one row each, and the check that nothing big is copied everywhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.rules import param_spec, path_of


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: `spec` is its partition, `bytes_per_device` what one device holds of it."""

    name: str
    shape: tuple[int, ...]
    spec: P
    bytes_total: int
    bytes_per_device: int

    @property
    def replicated(self) -> bool:
        return self.bytes_per_device == self.bytes_total


def report(params: Any, mesh: Mesh) -> list[Row]:
    """Rows of all leaves (arrays or shapes), in tree order.

    Raises:
      UserError: if a parameter cannot be split as the rules say.
    """
    rows = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(key_path)
        spec = param_spec(path, leaf.shape, mesh)
        local = NamedSharding(mesh, spec).shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        rows.append(Row("/".join(path), leaf.shape, spec, math.prod(leaf.shape) * size, math.prod(local) * size))
    return rows


def check_replicated(rows: list[Row], mesh: Mesh, limit: int) -> None:
    """Fails a run that holds a big parameter whole on every device.

    Args:
      rows: from `report`.
      mesh: its mesh; a single device replicates nothing.
      limit: bytes, `config.mesh.max_replicated_bytes`; 0 accepts everything.

    Raises:
      UserError: naming the largest such parameter.
    """
    if not limit or mesh.size == 1:
        return
    worst = max(rows, key=lambda row: row.bytes_total if row.replicated else 0)
    if worst.replicated and worst.bytes_total > limit:
        raise UserError(
            f"the parameter {worst.name} ({worst.bytes_total} bytes) is held whole by every device, more than "
            f"config.mesh.max_replicated_bytes {limit}; raise config.mesh.fsdp or config.mesh.tensor"
        )
