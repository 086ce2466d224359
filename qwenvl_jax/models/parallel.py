"""What moves between devices in the towers, said here instead of left to the compiler.

Rows (and images) of activations are split over the mesh axes `data` and `fsdp`, kernels over `fsdp` along the axis that
`sharding.rules` names. Left to itself the compiler finds other ways: it splits gradients along the width of the weights
and gathers activations, or sums gradients whole where each device needs a part of the sum.

Every function computes the same without a mesh (see `jax.set_mesh`), where `fsdp` has one device, or where the rows do
not divide; then it says nothing. Between products, heads and hidden widths over `tensor` stay the compiler's work.

Shape suffixes: B rows, L tokens, D width, V vocabulary, F features (of all images), G image groups, R rows of a group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwenvl_jax.sharding.mesh import BATCH_AXES as ROWS
from qwenvl_jax.sharding.rules import KernelAxes


class Split(NamedTuple):
    """Devices along the mesh axes that split rows."""

    data: int
    fsdp: int


def rows_split(rows: int) -> Split | None:
    """How the mesh that is set splits `rows` rows; None without one, on one device, or where they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(ROWS) <= set(mesh.axis_names) - set(mesh.manual_axes):
        return None
    split = Split(*(mesh.shape[axis] for axis in ROWS))
    return split if split.data * split.fsdp > 1 and rows % (split.data * split.fsdp) == 0 else None


def _per_device(function: Any, in_specs: Any) -> Any:
    """`function` on each device's part; its result is split by rows."""
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=PartitionSpec(ROWS), axis_names=set(ROWS), check_vma=False
    )


def splits_kernels() -> bool:
    """Whether the mesh that is set splits kernels over `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    return "fsdp" in mesh.axis_names and mesh.shape["fsdp"] > 1


def over_rows(x: jax.Array) -> jax.Array:
    """Keeps the rows (or images) of an activation split over `data` and `fsdp`, and that of its gradient."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS)) if rows_split(x.shape[0]) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(part: jax.Array, axis: int) -> jax.Array:
    """Joins the parts of an array that lie over `fsdp` along `axis`; its gradient is summed by `scatter_sum`.

    Like `scatter_sum` meant for functions that run on each device (`jax.shard_map`).
    """
    return jax.lax.all_gather(part, "fsdp", axis=axis, tiled=True)


def _gather_forward(part: jax.Array, axis: int) -> tuple[jax.Array, None]:
    return gather(part, axis), None


def _gather_backward(axis: int, _: None, whole: jax.Array) -> tuple[jax.Array]:
    return (scatter_sum(whole, axis),)


gather.defvjp(_gather_forward, _gather_backward)


def scatter_sum(whole: jax.Array, axis: int) -> jax.Array:
    """This device's part, along `axis`, of the sum over `fsdp`.

    The parts are laid out along an axis of their own in front. Otherwise XLA's TPU compiler turns the reduce-scatter
    into an all-reduce, twice the bytes, where the part's rows or columns do not fill its tiles evenly.
    """
    parts = jax.lax.axis_size("fsdp")
    front = jnp.moveaxis(whole, axis, 0)
    front = front.reshape(parts, -1, *front.shape[1:])
    own = jax.lax.psum_scatter(front, "fsdp", scatter_dimension=0, tiled=True)
    return jnp.moveaxis(own[0], 0, axis)


def product(x: jax.Array, kernel: jax.Array, contract: int, axes: KernelAxes, unstack: bool = False) -> Any:
    """[B, ..., *inputs] times [*inputs, *outputs]: each device gathers the kernel for its own rows.

    The gradient of the kernel is reduce-scattered over `fsdp`, never summed whole. Over `tensor` nothing is gathered:
    each device computes its part of the outputs, or of the sum over the inputs, which is then added up.

    Args:
      x: activations, in the compute dtype.
      kernel: in the compute dtype.
      contract: number of input axes.
      axes: of the kernel, from `sharding.rules.kernel_axes`.
      unstack: whether the result is a tuple over the first output axis, each of a product of its own: XLA's TPU
        compiler copies what it slices out of one result, and the first product need not wait for all kernels.
    """

    def multiply(x: jax.Array, kernel: jax.Array, whole: Callable[[jax.Array], jax.Array]) -> Any:
        parts = jnp.unstack(kernel, axis=contract) if unstack else (kernel,)
        results = tuple(jnp.tensordot(x, whole(part), axes=contract) for part in parts)
        return results if unstack else results[0]

    split = rows_split(x.shape[0]) if x.ndim > contract + 1 else None
    if split is None or split.fsdp == 1 or kernel.shape[axes.fsdp] % split.fsdp:
        return multiply(x, kernel, whole=lambda kernel: kernel)

    size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    parts = size * split.fsdp if axes.tensor == axes.fsdp else size
    tensor = axes.tensor if axes.tensor is not None and size > 1 and kernel.shape[axes.tensor] % parts == 0 else None
    sums_over_tensor = tensor is not None and tensor < contract
    x_spec: list[Any] = [ROWS, *[None] * (x.ndim - 1)]
    kernel_spec: list[Any] = [None] * kernel.ndim
    y_spec: list[Any] = [ROWS, *[None] * (x.ndim + kernel.ndim - 2 * contract - 1 - unstack)]
    kernel_spec[axes.fsdp] = "fsdp"
    if tensor is not None:
        kernel_spec[tensor] = ("tensor", "fsdp") if tensor == axes.fsdp else "tensor"
        if sums_over_tensor:
            x_spec[tensor - contract] = "tensor"
        else:
            y_spec[tensor - kernel.ndim] = "tensor"

    def local(x: jax.Array, part: jax.Array) -> Any:
        axis = axes.fsdp - (unstack and axes.fsdp > contract)  # without the one that is unstacked
        y = multiply(x, part, whole=lambda part: gather(part, axis))
        return jax.lax.psum(y, "tensor") if sums_over_tensor else y

    return jax.shard_map(
        local,
        in_specs=(PartitionSpec(*x_spec), PartitionSpec(*kernel_spec)),
        out_specs=PartitionSpec(*y_spec),
        axis_names=set(ROWS) if tensor is None else {*ROWS, "tensor"},
        check_vma=False,
    )(x, kernel)


def lookup(table_VD: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the embedding table, [...] ids to [..., D] in `dtype`; an id outside the vocabulary gives NaN.

    The width of the table is split over `fsdp`: every device looks up its part of the width for all rows of its `fsdp`
    group, then parts and rows change places.
    """

    def local(table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
        return table_VD.at[tokens].get(mode="fill", fill_value=jnp.nan).astype(dtype)

    split = rows_split(tokens.shape[0]) if tokens.ndim == 2 else None
    if split is None or split.fsdp == 1 or table_VD.shape[1] % split.fsdp:
        return local(table_VD, tokens)

    def group(table_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
        all_BL = jax.lax.all_gather(tokens_BL, "fsdp", axis=0, tiled=True)
        return jax.lax.all_to_all(local(table_VD, all_BL), "fsdp", split_axis=0, concat_axis=2, tiled=True)

    return _per_device(group, (PartitionSpec(None, "fsdp"), PartitionSpec(ROWS)))(table_VD, tokens)


def take_features(features_FD: jax.Array, slots_BL: jax.Array, groups: int) -> jax.Array:
    """The feature at every slot, [B, L, D]; a slot outside its group gives NaN, a negative one anything.

    Features and rows are cut into `groups` equal parts, and the slots of a part count its own features. Only devices
    that share a part exchange features; with a part or more per device none do. Where neither of the numbers of
    groups and devices divides the other, so many devices exchange as hold whole groups together.
    """

    def local(features_FD: jax.Array, slots_BL: jax.Array, groups: int) -> jax.Array:
        features = features_FD.reshape(groups, -1, features_FD.shape[-1])
        slots = jnp.maximum(slots_BL, 0).reshape(groups, -1, slots_BL.shape[1])
        taken_GRLD = jax.vmap(lambda f, s: f.at[s].get(mode="fill", fill_value=jnp.nan))(features, slots)
        return taken_GRLD.reshape(*slots_BL.shape, -1)

    split = rows_split(math.gcd(slots_BL.shape[0], features_FD.shape[0]))
    if split is None:
        return local(features_FD, slots_BL, groups)
    devices = math.prod(split)
    blocks = math.gcd(groups, devices)  # the most parts whose borders are those of groups and of devices
    sharing = devices // blocks
    group_rows, group_features = slots_BL.shape[0] // groups, features_FD.shape[0] // groups

    def of_block(features_FD: jax.Array, slots_BL: jax.Array) -> jax.Array:
        features_FD = _gather_neighbours(features_FD, split, sharing)
        if sharing == 1 or blocks == groups:
            return local(features_FD, slots_BL, groups // blocks)
        # This device's rows may begin and end within groups: the slots are counted from the block's first feature.
        first = jax.lax.axis_index(ROWS) % sharing * slots_BL.shape[0]
        group_B1 = ((first + jnp.arange(slots_BL.shape[0])) // group_rows)[:, None]
        slots_BL = jnp.maximum(slots_BL, 0)
        outside = features_FD.shape[0]
        return local(
            features_FD, jnp.where(slots_BL < group_features, group_B1 * group_features + slots_BL, outside), 1
        )

    return _per_device(of_block, (PartitionSpec(ROWS), PartitionSpec(ROWS)))(features_FD, slots_BL)


def _gather_neighbours(x: jax.Array, split: Split, neighbours: int) -> jax.Array:
    """Joins the parts of each `neighbours` consecutive devices, counted along `fsdp`, then along `data`.

    These are whole lines of `fsdp`, or a part of one; or, as 6 neighbours where `fsdp` is 4, neither.
    """
    along_fsdp = math.gcd(neighbours, split.fsdp)
    x = _gather_along(x, "fsdp", split.fsdp, along_fsdp)
    if along_fsdp in (split.fsdp, neighbours):
        return _gather_along(x, "data", split.data, neighbours // along_fsdp)
    return _gather_by_turns(x, ROWS, math.prod(split), neighbours // along_fsdp, apart=along_fsdp)


def _gather_along(x: jax.Array, axis: str, devices: int, neighbours: int) -> jax.Array:
    """Joins the parts of each `neighbours` consecutive devices of a mesh axis."""
    if neighbours == 1:
        return x
    if neighbours < devices and devices & (devices - 1):
        return _gather_by_turns(x, axis, devices, neighbours)
    groups = [list(range(first, first + neighbours)) for first in range(0, devices, neighbours)]
    return jax.lax.all_gather(x, axis, axis_index_groups=groups if len(groups) > 1 else None, axis=0, tiled=True)


def _gather_by_turns(
    x: jax.Array, axes: str | tuple[str, ...], devices: int, neighbours: int, apart: int = 1
) -> jax.Array:
    """Joins the parts of each `neighbours` devices that follow one another `apart` along mesh axes of `devices`.

    Each device sends its part to every other one, in as many permutations: as many bytes as one collective moves. The
    TPU compiler refuses reductions in groups of three, and aborts where a group lies in two slices but fills neither.
    """
    place = jax.lax.axis_index(axes) // apart % neighbours
    firsts = [first + k for first in range(0, devices, neighbours * apart) for k in range(apart)]
    parts = [x]
    for turn in range(1, neighbours):
        pairs = [(own, (own + turn) % neighbours) for own in range(neighbours)]
        to = [(first + a * apart, first + b * apart) for first in firsts for a, b in pairs]
        parts.append(jax.lax.ppermute(x, axes, to))
    # The parts are those of the places own, own - 1, own - 2 and so on.
    return jnp.roll(jnp.concatenate(parts[::-1]), (place + 1) * x.shape[0], axis=0)
