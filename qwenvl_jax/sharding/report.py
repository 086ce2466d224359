"""How the state is split over the mesh, per parameter and per component, and as JSON.

Also the check that no big parameter is replicated. The mesh may be an `AbstractMesh`: only its sizes are needed.
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
from qwenvl_jax.params import LORA, Params, PyTree, component_of, path_of
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import AnyMesh
from qwenvl_jax.sharding.rules import param_spec


@dataclasses.dataclass(frozen=True)
class ParameterLine:
    """How one parameter is split.

    Attributes:
      name: its path, e.g. "vit/blocks/mlp/up/kernel".
      component: one of `config.COMPONENTS` or `lora`; the resampler's sin-cos table counts as `resampler`, the scale of
        an adapter as its tower.
      shape: of the whole parameter.
      dtype: its name.
      spec: its partition.
      bytes_total: of one whole copy.
      bytes_per_device: of the part that one device holds.
    """

    name: str
    component: str
    shape: tuple[int, ...]
    dtype: str
    spec: P
    bytes_total: int
    bytes_per_device: int

    @property
    def replicated(self) -> bool:
        """Whether every device holds the whole parameter."""
        return self.bytes_per_device == self.bytes_total


@dataclasses.dataclass(frozen=True)
class ComponentLine:
    """The parameters of one component together.

    Attributes:
      name: one of `config.COMPONENTS` or `lora`.
      bytes_total: of one whole copy.
      bytes_per_device: what one device holds.
      bytes_replicated: of the parameters that every device holds whole.
      split: bytes by the mesh axes that they are split over, e.g. {("fsdp",): 3e9, ("fsdp", "tensor"): 1e9}; the key ()
        counts the parameters that every device holds whole.
    """

    name: str
    bytes_total: int
    bytes_per_device: int
    bytes_replicated: int
    split: dict[tuple[str, ...], int]


def parameter_lines(params: Params, mesh: AnyMesh) -> list[ParameterLine]:
    """One line per leaf (array or shape), in tree order.

    Raises:
      UserError: if a parameter cannot be split as the rules say.
    """
    lines = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(key_path)
        component = component_of(path)
        spec = param_spec(path, leaf.shape, mesh)
        part = NamedSharding(mesh, spec).shard_shape(leaf.shape)
        lines.append(
            ParameterLine(
                name="/".join(path),
                component=path[0] if component == "fixed" else component,
                shape=leaf.shape,
                dtype=leaf.dtype.name,
                spec=spec,
                bytes_total=math.prod(leaf.shape) * leaf.dtype.itemsize,
                bytes_per_device=math.prod(part) * leaf.dtype.itemsize,
            )
        )
    return lines


def component_lines(parameters: list[ParameterLine], mesh: AnyMesh) -> list[ComponentLine]:
    """Sums per component, in the order of `config.COMPONENTS` and then `lora`; one without parameters is left out."""
    lines = []
    for name in (*COMPONENTS, LORA):
        members = [line for line in parameters if line.component == name]
        if not members:
            continue
        split: dict[tuple[str, ...], int] = {}
        for line in members:
            axes = _axes(line.spec, mesh)
            split[axes] = split.get(axes, 0) + line.bytes_total
        lines.append(
            ComponentLine(
                name=name,
                bytes_total=sum(line.bytes_total for line in members),
                bytes_per_device=sum(line.bytes_per_device for line in members),
                bytes_replicated=sum(line.bytes_total for line in members if line.replicated),
                split=split,
            )
        )
    return lines


def _axes(spec: P, mesh: AnyMesh) -> tuple[str, ...]:
    """The mesh axes that a partition uses, in the order of the mesh."""
    used: set[str] = set()
    for axes in spec:
        used |= {axes} if isinstance(axes, str) else set(axes or ())
    return tuple(axis for axis in mesh.axis_names if axis in used)


def memory_use(tree: PyTree) -> dict[str, tuple[int, int]]:
    """Bytes (in all, per device) by kind of memory, of leaves with a shape, a dtype and a sharding."""
    use: dict[str, tuple[int, int]] = {}
    for leaf in jax.tree.leaves(tree):
        kind = leaf.sharding.memory_kind or "device"
        total, per_device = use.get(kind, (0, 0))
        total += math.prod(leaf.shape) * leaf.dtype.itemsize
        per_device += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        use[kind] = (total, per_device)
    return use


def as_json(trainable: Params, frozen: Params, opt_state: PyTree, mesh: AnyMesh) -> dict[str, Any]:
    """The sharding of a state as JSON values.

    Args:
      trainable, frozen: the two trees of parameters, of arrays or shapes.
      opt_state: with shardings.
      mesh: that they are split over.

    Returns:
      `mesh`: its sizes. `total` and `towers`, the latter by component: `bytes`, `bytes_per_device` and
      `bytes_replicated` (of parameters that every device holds whole). `optimizer`: bytes by kind of memory.
      `parameters`: by name `shape`, `dtype`, `spec` (per axis null, a mesh axis or several), `bytes_per_device` and
      `state`, "trainable" or "frozen".

    Raises:
      UserError: if a parameter cannot be split as the rules say.
    """
    trained_lines = parameter_lines(trainable, mesh)
    frozen_lines = parameter_lines(frozen, mesh)
    parameters = {line.name: _parameter_json(line, "trainable") for line in trained_lines}
    parameters |= {line.name: _parameter_json(line, "frozen") for line in frozen_lines}
    components = {
        line.name: {
            "bytes": line.bytes_total,
            "bytes_per_device": line.bytes_per_device,
            "bytes_replicated": line.bytes_replicated,
        }
        for line in component_lines([*trained_lines, *frozen_lines], mesh)
    }
    keys = ("bytes", "bytes_per_device", "bytes_replicated")
    return {
        "mesh": dict(mesh.shape),
        "total": {key: sum(component[key] for component in components.values()) for key in keys},
        "towers": components,  # the components; the name is older
        "optimizer": {
            kind: {"bytes": total, "bytes_per_device": per_device}
            for kind, (total, per_device) in sorted(memory_use(opt_state).items())
        },
        "parameters": dict(sorted(parameters.items())),
    }


def _parameter_json(line: ParameterLine, state: str) -> dict[str, Any]:
    spec = [list(axes) if isinstance(axes, tuple) else axes for axes in line.spec]
    unsplit = len(line.shape) - len(spec)  # a partition leaves out trailing axes that are not split
    return {
        "shape": list(line.shape),
        "dtype": line.dtype,
        "spec": spec + [None] * unsplit,
        "bytes_per_device": line.bytes_per_device,
        "state": state,
    }


def json_text(value: dict[str, Any]) -> str:
    """The text of `as_json` with one line per parameter and component, so that a diff can be read."""
    parts = []
    for key, part in value.items():
        if all(isinstance(entry, dict) for entry in part.values()):
            lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in part.items())
            parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(part)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def check_replicated(parameters: list[ParameterLine], mesh: AnyMesh, limit: int) -> None:
    """Refuses a state of which every device holds a big parameter whole.

    Args:
      parameters: from `parameter_lines`.
      mesh: that they are split over; a single device replicates nothing.
      limit: bytes, `config.mesh.max_replicated_bytes`; 0 accepts everything.

    Raises:
      UserError: naming the largest such parameter.
    """
    if not limit or mesh.size == 1:
        return
    worst = max(parameters, key=lambda line: line.bytes_total if line.replicated else 0)
    if worst.replicated and worst.bytes_total > limit:
        raise UserError(
            f"the parameter {worst.name} ({worst.bytes_total} bytes) is held whole by every device, more than "
            f"config.mesh.max_replicated_bytes {limit}; raise config.mesh.fsdp or config.mesh.tensor"
        )
