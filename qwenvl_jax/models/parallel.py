"""The collectives of the towers, written out instead of left to the compiler.

Rows (and images) of activations are split over the mesh axes `data` and `fsdp`, kernels over `fsdp` along the axis that
`sharding.rules` names. The compiler alone would choose worse: it splits gradients along the width of the weights and
gathers activations, or all-reduces whole gradients of which each device needs only a part.

Every function computes the same without a mesh (see `jax.set_mesh`), with one device along `fsdp`, or with rows that do
not divide, and adds no constraint in those cases. Between products, heads and hidden widths over `tensor` are left to
the compiler.

Shape suffixes: B rows, L tokens, D width, V vocabulary, F features (of all images), G image groups, R rows of a group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwenvl_jax.sharding.mesh import AXES
from qwenvl_jax.sharding.mesh import BATCH_AXES as ROWS
from qwenvl_jax.sharding.rules import KernelAxes


class Split(NamedTuple):
    """Devices along the mesh axes that split rows."""

    data: int
    fsdp: int


def rows_split(rows: int) -> Split | None:
    """How the present mesh splits `rows` rows; None without a mesh, on one device, or if they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(ROWS) <= set(mesh.axis_names) - set(mesh.manual_axes):
        return None
    split = Split(*(mesh.shape[axis] for axis in ROWS))
    return split if split.data * split.fsdp > 1 and rows % (split.data * split.fsdp) == 0 else None


def _per_device(function: Any, in_specs: Any) -> Any:
    """`function` mapped over the devices; its result is split by rows."""
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=PartitionSpec(ROWS), axis_names=set(ROWS), check_vma=False
    )


def per_row_and_head(
    function: Callable[..., jax.Array], arguments: Sequence[str], result: str, rows: int, heads: int
) -> Callable[..., jax.Array]:
    """`function` mapped over the devices, each with its rows and heads; `function` itself without a mesh.

    For work in which no row and no head needs another one, if the compiler would not split it by itself.

    Args:
      function: of arrays, to one array.
      arguments: the axes of its arguments as shape suffixes, e.g. "SBNTK"; B is split by rows and N by heads.
      result: the axes of its result.
      rows, heads: how many there are; they stay whole if they do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes or not set(AXES) <= set(mesh.axis_names) or mesh.size == 1:
        return function
    split = {"B": ROWS if rows_split(rows) else None, "N": "tensor" if heads % mesh.shape["tensor"] == 0 else None}

    def spec(axes: str) -> PartitionSpec:
        return PartitionSpec(*map(split.get, axes))

    in_specs = tuple(map(spec, arguments))
    return jax.shard_map(function, in_specs=in_specs, out_specs=spec(result), axis_names=set(AXES), check_vma=False)


def splits_kernels() -> bool:
    """Whether the present mesh splits kernels over `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    return "fsdp" in mesh.axis_names and mesh.shape["fsdp"] > 1


def over_rows(x: jax.Array) -> jax.Array:
    """Constrains an activation and its gradient to stay split by rows (or images) over `data` and `fsdp`."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS)) if rows_split(x.shape[0]) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(part: jax.Array, axis: int) -> jax.Array:
    """Joins the parts of an array that is split over `fsdp` along `axis`; the gradient is summed by `scatter_sum`.

    Like `scatter_sum`, it is for use inside `jax.shard_map`.
    """
    return jax.lax.all_gather(part, "fsdp", axis=axis, tiled=True)


def _gather_forward(part: jax.Array, axis: int) -> tuple[jax.Array, None]:
    return gather(part, axis), None


def _gather_backward(axis: int, _: None, whole: jax.Array) -> tuple[jax.Array]:
    return (scatter_sum(whole, axis),)


gather.defvjp(_gather_forward, _gather_backward)


def scatter_sum(whole: jax.Array, axis: int) -> jax.Array:
    """This device's part, along `axis`, of the sum over `fsdp`.

    The parts get a leading axis of their own. Otherwise XLA's TPU compiler replaces the reduce-scatter by an
    all-reduce, with twice the bytes, if the rows or columns of a part do not fill its tiles evenly.
    """
    devices = jax.lax.axis_size("fsdp")
    parts = jnp.moveaxis(whole, axis, 0)
    parts = parts.reshape(devices, -1, *parts.shape[1:])
    part = jax.lax.psum_scatter(parts, "fsdp", scatter_dimension=0, tiled=True)
    return jnp.moveaxis(part[0], 0, axis)


class _ProductSpecs(NamedTuple):
    """How a `product` is mapped over the devices.

    Attributes:
      x, kernel, y: partitions of the activations, the kernel and the result.
      sums_over_tensor: whether the axis of the kernel over `tensor` is an input, so that partial sums are added up.
      axis_names: mesh axes that the product is mapped over.
    """

    x: PartitionSpec
    kernel: PartitionSpec
    y: PartitionSpec
    sums_over_tensor: bool
    axis_names: set[str]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def times(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
    """[..., *inputs] times [*inputs, *outputs], on one device.

    The gradient of the kernel is a product of `x` and the gradient of the result, one of which XLA transposes by a copy
    on CPUs. JAX would transpose the latter, this transposes the smaller one.

    Args:
      x: activations.
      kernel: of the same dtype.
      contract: number of input axes.
    """
    return jnp.tensordot(x, kernel, axes=contract)


def _times_forward(x: Any, kernel: Any, contract: int) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array]]:
    # A frozen kernel needs no `x` in the backward pass.
    return times(x.value, kernel.value, contract), (x.value if kernel.perturbed else None, kernel.value)


def _times_backward(
    contract: int, kept: tuple[jax.Array | None, jax.Array], gradient: Any
) -> tuple[jax.Array | None, jax.Array | None]:
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return None, None
    x, kernel = kept
    outputs = tuple(range(contract, kernel.ndim))
    batch = tuple(range(gradient.ndim - len(outputs)))
    of_x = jnp.tensordot(gradient, kernel, (tuple(range(len(batch), gradient.ndim)), outputs))
    if x is None:
        return of_x, None
    if x.size <= gradient.size:
        return of_x, jnp.tensordot(x, gradient, (batch, batch))
    of_kernel = jnp.tensordot(gradient, x, (batch, batch))
    return of_x, jnp.moveaxis(of_kernel, range(len(outputs)), outputs)


times.defvjp(_times_forward, _times_backward, symbolic_zeros=True)


def product(x: jax.Array, kernel: jax.Array, contract: int, axes: KernelAxes, unstack: bool = False) -> Any:
    """[B, ..., *inputs] times [*inputs, *outputs]: each device gathers the kernel for its rows.

    The gradient of the kernel is reduce-scattered over `fsdp`, never all-reduced. Over `tensor` nothing is gathered:
    each device computes its part of the outputs, or a partial sum over its part of the inputs, and these are added up.

    Two examples on a mesh of fsdp 2 x tensor 2, with `contract` 1:
      a kernel [width, hidden] with KernelAxes(fsdp=0, tensor=1): a device holds [width / 2, hidden / 2], gathers
        [width, hidden / 2] over `fsdp` and computes its half of the hidden units for its rows.
      a kernel [hidden, width] with KernelAxes(fsdp=0, tensor=0): a device holds [hidden / 4, width], gathers
        [hidden / 2, width], multiplies its half of the hidden units, and the sum over `tensor` gives [B, width].

    Args:
      x: activations, in the compute dtype.
      kernel: in the compute dtype.
      contract: number of input axes.
      axes: of the kernel, from `sharding.rules.kernel_axes`.
      unstack: whether to return a tuple over the first output axis, with one product for each entry. XLA's TPU compiler
        would copy slices of a single result, and the first product need not wait for all kernels.
    """

    def multiply(x: jax.Array, kernel: jax.Array, whole: Callable[[jax.Array], jax.Array]) -> Any:
        parts = jnp.unstack(kernel, axis=contract) if unstack else (kernel,)
        results = tuple(times(x, whole(part), contract) for part in parts)
        return results if unstack else results[0]

    split = rows_split(x.shape[0]) if x.ndim > contract + 1 else None
    if split is None or split.fsdp == 1 or kernel.shape[axes.fsdp] % split.fsdp:
        return multiply(x, kernel, whole=lambda kernel: kernel)
    specs = _product_specs(x.ndim, kernel.shape, contract, axes, unstack, split.fsdp)

    def local(x: jax.Array, part: jax.Array) -> Any:
        axis = axes.fsdp - (unstack and axes.fsdp > contract)  # after the axis that is unstacked there is one less
        y = multiply(x, part, whole=lambda part: gather(part, axis))
        return jax.lax.psum(y, "tensor") if specs.sums_over_tensor else y

    return jax.shard_map(
        local, in_specs=(specs.x, specs.kernel), out_specs=specs.y, axis_names=specs.axis_names, check_vma=False
    )(x, kernel)


def _product_specs(
    x_ndim: int, kernel_shape: tuple[int, ...], contract: int, axes: KernelAxes, unstack: bool, fsdp: int
) -> _ProductSpecs:
    """The partitions of a `product`; `fsdp` is the number of devices along that axis."""
    size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    parts = size * fsdp if axes.tensor == axes.fsdp else size
    tensor = axes.tensor if size > 1 else None
    if tensor is not None and kernel_shape[tensor] % parts:
        tensor = None

    outputs = len(kernel_shape) - contract - unstack
    x_spec: list[Any] = [ROWS, *[None] * (x_ndim - 1)]
    kernel_spec: list[Any] = [None] * len(kernel_shape)
    y_spec: list[Any] = [ROWS, *[None] * (x_ndim - contract - 1 + outputs)]
    kernel_spec[axes.fsdp] = "fsdp"
    if tensor is not None:
        kernel_spec[tensor] = ("tensor", "fsdp") if tensor == axes.fsdp else "tensor"
        if tensor < contract:  # an input; the inputs are the last axes of x
            x_spec[tensor - contract] = "tensor"
        else:  # an output; the outputs are the last axes of y
            y_spec[tensor - len(kernel_shape)] = "tensor"
    return _ProductSpecs(
        PartitionSpec(*x_spec),
        PartitionSpec(*kernel_spec),
        PartitionSpec(*y_spec),
        sums_over_tensor=tensor is not None and tensor < contract,
        axis_names=set(ROWS) if tensor is None else {*ROWS, "tensor"},
    )


def lookup(table_VD: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the embedding table, [...] ids to [..., D] in `dtype`; an id outside the vocabulary gives NaN.

    The width of the table is split over `fsdp`: every device looks up its part of the width for all rows of its `fsdp`
    group, then an all-to-all exchanges parts of the width for rows.
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
    """The feature at every slot, [B, L, D]; a slot outside its group gives NaN, a negative slot an undefined value.

    Features and rows form `groups` equal groups, and slots are indices within a group. Devices exchange features
    only if they share a group. If neither of the numbers of groups and devices divides the other, the fewest devices
    that hold whole groups together exchange theirs. Example: 8 groups on 12 devices; each 3 devices hold 2 groups and
    exchange their features.

    Args:
      features_FD: of all images.
      slots_BL: int32 indices of features within the group of the row, -1 for text.
      groups: number of groups.
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
    blocks = math.gcd(groups, devices)  # a block is the fewest consecutive devices that hold whole groups
    sharing = devices // blocks
    group_rows = slots_BL.shape[0] // groups
    group_features = features_FD.shape[0] // groups

    def of_block(features_FD: jax.Array, slots_BL: jax.Array) -> jax.Array:
        features_FD = _gather_neighbours(features_FD, split, sharing)
        if sharing == 1 or blocks == groups:
            return local(features_FD, slots_BL, groups // blocks)
        # The rows of this device may begin and end within groups, so slots are counted from the block's first feature.
        first = jax.lax.axis_index(ROWS) % sharing * slots_BL.shape[0]
        group_B1 = ((first + jnp.arange(slots_BL.shape[0])) // group_rows)[:, None]
        slots_BL = jnp.maximum(slots_BL, 0)
        outside = features_FD.shape[0]
        in_block_BL = jnp.where(slots_BL < group_features, group_B1 * group_features + slots_BL, outside)
        return local(features_FD, in_block_BL, 1)

    return _per_device(of_block, (PartitionSpec(ROWS), PartitionSpec(ROWS)))(features_FD, slots_BL)


def _gather_neighbours(x: jax.Array, split: Split, neighbours: int) -> jax.Array:
    """Joins the parts of each `neighbours` consecutive devices, counted along `fsdp`, then along `data`.

    These are whole lines of `fsdp`, or a part of a line, or neither: 6 neighbours on lines of 4 devices.
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
    """Joins the parts of each `neighbours` devices by permutations.

    Every device sends its part to each of the others, one permutation after the other. This moves as many bytes as one
    all-gather. The TPU compiler has no reduction in groups of three, and aborts if a group spans two slices but fills
    neither.

    Args:
      x: this device's part.
      axes: mesh axes along which the devices are counted.
      devices: number of devices along them.
      neighbours: devices of a group.
      apart: distance of consecutive devices of a group; the groups in between are interleaved.
    """
    rank = jax.lax.axis_index(axes) // apart % neighbours  # of this device within its group
    firsts = [first + k for first in range(0, devices, neighbours * apart) for k in range(apart)]
    parts = [x]
    for turn in range(1, neighbours):
        pairs = [(sender, (sender + turn) % neighbours) for sender in range(neighbours)]
        permutation = [(first + a * apart, first + b * apart) for first in firsts for a, b in pairs]
        parts.append(jax.lax.ppermute(x, axes, permutation))
    # The parts are those of the ranks rank, rank - 1, rank - 2 and so on.
    return jnp.roll(jnp.concatenate(parts[::-1]), (rank + 1) * x.shape[0], axis=0)
