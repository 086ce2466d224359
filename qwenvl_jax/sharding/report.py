"""How the state lies on the mesh: per parameter, per tower, as JSON; and the check that nothing big is copied.

Needs sizes only: an `AbstractMesh` does as well as one of devices.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import COMPONENTS
from qwenvl_jax.params import component_of, path_of
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import AnyMesh
from qwenvl_jax.sharding.rules import param_spec


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: `spec` is its partition, `bytes_per_device` what one device holds of it."""

    name: str
    tower: str
    shape: tuple[int, ...]
    dtype: str
    spec: P
    bytes_total: int
    bytes_per_device: int

    @property
    def replicated(self) -> bool:
        return self.bytes_per_device == self.bytes_total


@dataclasses.dataclass(frozen=True)
class Tower:
    """The parameters of one tower together.

    Attributes:
      name: `vit`, `vit_head`, `resampler` (with its sin-cos table) or `decoder`.
      bytes_total: of one whole copy.
      bytes_per_device: what one device holds.
      bytes_replicated: of the parameters that every device holds whole.
      split: bytes by the mesh axes that they are split over, e.g. {("fsdp",): 3e9, ("fsdp", "tensor"): 1e9}; what is
        whole on every device is under ().
    """

    name: str
    bytes_total: int
    bytes_per_device: int
    bytes_replicated: int
    split: dict[tuple[str, ...], int]


def report(params: Any, mesh: AnyMesh) -> list[Row]:
    """Rows of all leaves (arrays or shapes), in tree order.

    Raises:
      UserError: if a parameter cannot be split as the rules say.
    """
    rows = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(key_path)
        spec = param_spec(path, leaf.shape, mesh)
        local = NamedSharding(mesh, spec).shard_shape(leaf.shape)
        component, size = component_of(path), leaf.dtype.itemsize
        rows.append(
            Row(
                name="/".join(path),
                tower=component if component in COMPONENTS else path[0],
                shape=leaf.shape,
                dtype=leaf.dtype.name,
                spec=spec,
                bytes_total=math.prod(leaf.shape) * size,
                bytes_per_device=math.prod(local) * size,
            )
        )
    return rows


def towers(rows: list[Row], mesh: AnyMesh) -> list[Tower]:
    """The sums of the rows per tower, in the order of `config.COMPONENTS`; a tower without parameters is left out."""
    found = []
    for name in COMPONENTS:
        own = [row for row in rows if row.tower == name]
        split: dict[tuple[str, ...], int] = {}
        for row in own:
            axes = _axes(row.spec, mesh)
            split[axes] = split.get(axes, 0) + row.bytes_total
        if own:
            found.append(
                Tower(
                    name=name,
                    bytes_total=sum(row.bytes_total for row in own),
                    bytes_per_device=sum(row.bytes_per_device for row in own),
                    bytes_replicated=sum(row.bytes_total for row in own if row.replicated),
                    split=split,
                )
            )
    return found


def _axes(spec: P, mesh: AnyMesh) -> tuple[str, ...]:
    """The mesh axes that a partition uses, in the order of the mesh."""
    used: set[str] = set()
    for axes in spec:
        used |= {axes} if isinstance(axes, str) else set(axes or ())
    return tuple(axis for axis in mesh.axis_names if axis in used)


def memory_use(tree: Any) -> dict[str, tuple[int, int]]:
    """Bytes (in all, per device) by kind of memory of leaves that have a shape, a dtype and a sharding."""
    found: dict[str, tuple[int, int]] = {}
    for leaf in jax.tree.leaves(tree):
        kind, size = leaf.sharding.memory_kind or "device", leaf.dtype.itemsize
        whole, local = found.get(kind, (0, 0))
        share = math.prod(leaf.sharding.shard_shape(leaf.shape))
        found[kind] = whole + math.prod(leaf.shape) * size, local + share * size
    return found


def as_json(trainable: Any, frozen: Any, opt_state: Any, mesh: AnyMesh) -> dict[str, Any]:
    """The sharding of a state as JSON values.

    Args:
      trainable, frozen: the two halves of the parameters, arrays or shapes.
      opt_state: with shardings.
      mesh: theirs.

    Returns:
      `mesh`: its sizes. `total` and `towers`: `bytes`, `bytes_per_device` and `bytes_replicated` (of parameters that
      every device holds whole). `optimizer`: bytes by kind of memory. `parameters`: by name `shape`, `dtype`, `spec`
      (per axis null, a mesh axis or several), `bytes_per_device` and `state`, "trainable" or "frozen".

    Raises:
      UserError: if a parameter cannot be split as the rules say.
    """
    halves = {"trainable": report(trainable, mesh), "frozen": report(frozen, mesh)}
    parameters = {
        row.name: {
            "shape": list(row.shape),
            "dtype": row.dtype,
            "spec": [list(axes) if isinstance(axes, tuple) else axes for axes in row.spec]
            + [None] * (len(row.shape) - len(row.spec)),
            "bytes_per_device": row.bytes_per_device,
            "state": half,
        }
        for half, rows in halves.items()
        for row in rows
    }
    sums = {
        tower.name: {
            "bytes": tower.bytes_total,
            "bytes_per_device": tower.bytes_per_device,
            "bytes_replicated": tower.bytes_replicated,
        }
        for tower in towers([*halves["trainable"], *halves["frozen"]], mesh)
    }
    return {
        "mesh": dict(mesh.shape),
        "total": {key: sum(tower[key] for tower in sums.values()) for key in next(iter(sums.values()))},
        "towers": sums,
        "optimizer": {
            kind: {"bytes": whole, "bytes_per_device": local}
            for kind, (whole, local) in sorted(memory_use(opt_state).items())
        },
        "parameters": dict(sorted(parameters.items())),
    }


def json_text(value: dict[str, Any]) -> str:
    """The text of `as_json` with one line per parameter and tower, so that differences can be read."""
    parts = []
    for key, part in value.items():
        if all(isinstance(entry, dict) for entry in part.values()):
            lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in part.items())
            parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(part)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def check_replicated(rows: list[Row], mesh: AnyMesh, limit: int) -> None:
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
