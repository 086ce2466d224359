"""The costs of one instruction: operations of its matrix products, and bytes that it reads from and writes to HBM.

A multiply-add counts as two operations. Arrays in VMEM, with `S(1)` in their layout, cost no HBM bytes. If a fusion
slices an operand, only the slice is read; if it updates a buffer in place, only the update is written.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from qwenvl_jax.planning.hlo.collectives import COLLECTIVE_OPCODES
from qwenvl_jax.planning.hlo.program import Computation, HloError, Instruction, Module

# These move no data, or are counted through the computation that they call.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"),
    *("while", "conditional", "call", "iota", "optimization-barrier", "add-dependency", "domain"),
}
_FREE_TARGETS = {"AllocateBuffer", "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
_READS_PART = ("dynamic-slice", "slice", "gather")
_KERNEL = "tpu_custom_call"
_LANES = 128  # lanes of a matrix unit; smaller heads leave some idle
_HOST = 5  # memory space of arrays in host memory
_LABELS = re.compile(r"(\w+)_(\w+)->(\w+)")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel: its name, and its operations without the blocks that its mask skips."""

    name: str
    flops: float


def matmul_flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Operations of an instruction's matrix products, including those inside a fusion, but not those of a loop body."""
    if instruction.opcode == "dot":
        return _dot_flops(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "fusion":
        inner = module[instruction.called("calls")]
        return sum(matmul_flops(module, inner, inside) for inside in inner.instructions.values())
    return 0.0


def _dot_flops(computation: Computation, instruction: Instruction) -> float:
    left = computation[instruction.operands[0]].arrays[0]
    contracted = instruction.attribute("lhs_contracting_dims")
    if contracted is None:
        raise HloError(f"the dot {instruction.name} has no lhs_contracting_dims")
    axes = [int(axis) for axis in contracted.strip("{}").split(",") if axis]
    return 2.0 * math.prod(instruction.arrays[0].dims) * math.prod(left.dims[axis] for axis in axes)


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """Operations of a convolution. On TPU every matrix product is one; its batch axes are windows with one element."""
    labels = _LABELS.match(instruction.attribute("dim_labels") or "")
    if not labels:
        raise HloError(f"the convolution {instruction.name} has no dim_labels")
    left, kernel = (computation[operand].arrays[0] for operand in instruction.operands[:2])
    result = instruction.arrays[0]
    flops = 2.0 * kernel.dims[labels[2].index("i")]
    flops *= result.dims[labels[3].index("b")] * result.dims[labels[3].index("f")]
    window = _window(instruction.attribute("window") or "")
    spatial = sorted(label for label in labels[3] if label.isdigit())
    for axis, label in enumerate(spatial):
        flops *= _real_pairs(
            left.dims[labels[1].index(label)],
            kernel.dims[labels[2].index(label)],
            result.dims[labels[3].index(label)],
            *(values[axis] if values else None for values in window),
        )
    return flops


def _window(text: str) -> tuple[list | None, list | None, list | None, list | None]:
    """Stride, lower padding, dilation of the left side and dilation of the kernel, each by spatial axis or None."""

    def values(key: str) -> list[int] | None:
        match = re.search(rf"\b{key}=([\dx_\-]+)", text)
        return [int(part.split("_")[0]) for part in match[1].split("x")] if match else None

    return values("stride"), values("pad"), values("lhs_dilate"), values("rhs_dilate")


@functools.cache
def _real_pairs(
    left: int,
    kernel: int,
    output: int,
    stride: int | None,
    pad: int | None,
    left_dilation: int | None,
    kernel_dilation: int | None,
) -> int:
    """The number of pairs of output index and kernel index that read an element, not padding or a hole of a dilation.

    Args:
      left, kernel, output: lengths of one spatial axis.
      stride, pad, left_dilation, kernel_dilation: of the window on that axis; None for the default.
    """
    stride = stride or 1
    pad = pad or 0
    left_dilation = left_dilation or 1
    kernel_dilation = kernel_dilation or 1
    count = 0
    offsets = np.arange(kernel) * kernel_dilation - pad
    for start in range(0, output * stride, stride):
        indices = offsets + start
        real = (indices >= 0) & (indices <= (left - 1) * left_dilation) & (indices % left_dilation == 0)
        count += int(real.sum())
    return count


def kernel_of(module: Module, instruction: Instruction) -> Kernel | None:
    """The Pallas kernel that an instruction calls, directly or in a fusion with a collective, or None.

    Splash attention is recognised by its name. With queries [.., N, L, K], keys [.., T, K] and n query blocks, the
    forward kernel computes 2 products of 2 B N L T K operations and the fused backward kernel 5, with K padded to whole
    lanes. A causal mask, recognised by an operand with the query positions, leaves (n + 1) / 2n of the blocks. For
    other kernels only memory traffic is counted.
    """
    if instruction.opcode == "fusion":
        inside = module[instruction.called("calls")].instructions.values()
        return next((kernel for kernel in (kernel_of(module, inner) for inner in inside) if kernel), None)
    if not _is_kernel(instruction):
        return None
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", instruction.attribute("operand_layout_constraints") or "")
    sizes = [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in shapes]
    products = 2 if "splash_mha_fwd" in instruction.name else 5 if "splash_mha_dkv" in instruction.name else 0
    wide = [dims for dtype, dims in sizes if dtype in ("bf16", "f32") and len(dims) >= 3]
    if not products or len(wide) < 2:
        return Kernel(instruction.name, 0.0)
    queries = wide[0]
    keys = wide[1]
    flops = products * 2.0 * math.prod(queries[:-1]) * -(-queries[-1] // _LANES) * _LANES * keys[-2]
    blocks = [dims for dtype, dims in sizes if dtype == "s8" and len(dims) == 3]
    if blocks and sizes[-1][0] == "s32" and len(sizes[-1][1]) == 2:
        side = max(blocks[0][-2:])
        flops *= (side + 1) / (2 * side)
    return Kernel(instruction.name, flops)


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from and writes to HBM; 0 for loops and calls, whose bodies count separately."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or opcode in COLLECTIVE_OPCODES:
        return 0.0
    if opcode == "custom-call" and _target(instruction) in _FREE_TARGETS:
        return 0.0
    written = sum(array.hbm_bytes for array in instruction.arrays)
    if opcode.endswith("-start"):
        # The arrays are (source, result, context), for copy-start (result, source, context). As many bytes as the
        # result has are read from one memory and written to the other.
        source, result = instruction.arrays[:2]
        if opcode == "copy-start":
            source, result = result, source
        return result.stored_bytes * ((source.space == 0) + (result.space == 0))
    if opcode in _READS_PART:
        source = computation[instruction.operands[0]].arrays[0]
        return written + (instruction.arrays[0].stored_bytes if source.space == 0 else 0.0)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = computation[instruction.operands[-1 if opcode == "scatter" else 1]].arrays[0]
        return (2 if opcode == "scatter" else 1) * (update.stored_bytes if written else 0.0) + update.hbm_bytes
    if opcode == "fusion":
        return _fusion_bytes(module, computation, instruction)
    return written + sum(array.hbm_bytes for name in instruction.operands for array in computation[name].arrays)


def host_bytes(instruction: Instruction) -> tuple[float, float]:
    """Bytes that an asynchronous copy reads from host memory, and bytes that it writes there."""
    if instruction.opcode != "copy-start":
        return 0.0, 0.0
    result, source = instruction.arrays[:2]
    size = result.stored_bytes
    return (size if source.space == _HOST else 0.0), (size if result.space == _HOST else 0.0)


def _target(instruction: Instruction) -> str:
    return (instruction.attribute("custom_call_target") or "").strip('"')


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and _target(instruction) == _KERNEL


def _fusion_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    inner = module[instruction.called("calls")]
    total = 0.0
    for name, parameter in zip(instruction.operands, inner.parameters, strict=True):
        if sum(array.hbm_bytes for array in computation[name].arrays):
            total += _read(module, inner, parameter)
    spaces = instruction.arrays
    results = inner.root.operands if inner.root.opcode == "tuple" else (inner.root.name,)
    for index, name in enumerate(results):
        if len(results) != len(spaces) or spaces[index].space == 0:
            total += _written(module, inner, inner[name])
    return total


def _read(module: Module, computation: Computation, parameter: Instruction) -> float:
    """Bytes of an operand that a fusion reads."""
    whole = sum(array.stored_bytes for array in parameter.arrays)
    total = 0.0
    for user, position in computation.users[parameter.name]:
        opcode = user.opcode
        if _is_kernel(user):
            return whole
        if opcode in ("tuple", "custom-call", *COLLECTIVE_OPCODES):
            continue  # passed on, or moved by a collective
        if opcode in _READS_PART and position == 0:
            total += sum(array.stored_bytes for array in user.arrays)
        elif opcode in ("dynamic-update-slice", "scatter") and position == 0:
            continue
        elif opcode in ("bitcast", "reshape"):
            total += _read(module, computation, user)
        elif opcode == "fusion":
            inner = module[user.called("calls")]
            same = _passed_on(inner, inner.parameters[position])
            if same or (_in_other_tiles(module, user) and _taken_in_parts(computation, user)):
                total += _read(module, computation, user)
            else:
                total += _read(module, inner, inner.parameters[position])
        else:
            return whole
    return min(total, whole)


def _in_other_tiles(module: Module, fusion: Instruction) -> bool:
    """Whether a fusion within a fusion returns its only operand in another layout; nothing is stored on the way."""
    if fusion.opcode != "fusion" or len(fusion.operands) != 1:
        return False
    inner = module[fusion.called("calls")]
    value = inner.root
    while value.opcode in ("bitcast", "reshape", "copy"):
        value = inner[value.operands[0]]
    return value.opcode == "parameter"


def _taken_in_parts(computation: Computation, value: Instruction) -> bool:
    """Whether a value within a fusion is only sliced or updated in place."""
    users = computation.users[value.name]
    parts = (*_READS_PART, "dynamic-update-slice")
    return bool(users) and all(user.opcode in parts and position == 0 for user, position in users)


def _passed_on(computation: Computation, parameter: Instruction) -> bool:
    """Whether a computation returns one of its parameters unchanged, apart from its shape."""
    value = computation.root
    while value.opcode in ("bitcast", "reshape"):
        value = computation[value.operands[0]]
    return value is parameter


def _written(module: Module, computation: Computation, result: Instruction) -> float:
    """Bytes of a result that a fusion writes."""
    while result.opcode in ("bitcast", "reshape"):
        result = computation[result.operands[0]]
    if _in_other_tiles(module, result):
        updated = computation[result.operands[0]]
        result = updated if updated.opcode == "dynamic-update-slice" else result
    producer = computation[result.operands[0]] if result.opcode == "get-tuple-element" else result
    not_written = ("parameter", "get-tuple-element", "custom-call", *COLLECTIVE_OPCODES)
    if result.opcode in not_written and not _is_kernel(producer):
        return 0.0  # passed on, or moved by a collective
    if result.opcode in ("dynamic-update-slice", "scatter"):
        update = result.operands[-1 if result.opcode == "scatter" else 1]
        return sum(array.stored_bytes for array in computation[update].arrays)
    if result.opcode == "fusion":
        inner = module[result.called("calls")]
        results = inner.root.operands if inner.root.opcode == "tuple" else (inner.root.name,)
        return sum(_written(module, inner, inner[name]) for name in results)
    return sum(array.stored_bytes for array in result.arrays)
