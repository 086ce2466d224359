"""The collectives of an HLO module: their kinds, sizes and groups.

A collective appears as one instruction, as a `-start` and `-done` pair, or, on TPU, as a chain of fusions with the same
channel: one that starts it (`AsyncCollectiveStart`), some that compute in the meantime, and one that ends it
(`AsyncCollectiveDone`). A reduce-scatter is a fusion of an all-reduce and the slice that follows. A collective on the
SparseCores is a computation between a `call-start` and a `call-done`.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from qwenvl_jax.planning.hlo.program import Computation, HloError, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
COLLECTIVE_OPCODES: dict[str, str] = {
    **{kind: kind for kind in KINDS},
    "ragged-all-to-all": "all-to-all",
    "collective-broadcast": "all-gather",
}

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_DEVICE_IDS = re.compile(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")
_MESH_SIZE = re.compile(r"'([^']+)'=(\d+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_MESH_AXES = re.compile(r"\{('[^{}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of `KINDS`.
      bytes: size of the whole buffer on one device: the result of an all-gather, the operand of the others.
      group: the partitions of one of the groups; for a permute, one pair.
      channel: the channel id, which all instructions of the collective share, or None.
      source: the `op_name` that JAX gave the operation (`jit(step)/...`); empty if the compiler added it.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    channel: str | None
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Role:
    """The role of an instruction in a collective; `phase` is `whole`, `start`, `during` or `done`."""

    collective: Collective
    phase: str


def role_of(module: Module, computation: Computation, instruction: Instruction) -> Role | None:
    """The role of an instruction in a collective, or None if it has none."""
    opcode = instruction.opcode
    for suffix, phase in (("-start", "start"), ("-done", "done"), ("", "whole")):
        base = opcode.removesuffix(suffix) if suffix and opcode.endswith(suffix) else opcode
        if base in COLLECTIVE_OPCODES and (suffix == "" or base != opcode):
            source = computation[instruction.operands[0]] if phase == "done" else instruction
            return Role(_collective(module, source), phase)
    if opcode in ("async-done", "call-done"):
        started = role_of(module, computation, computation[instruction.operands[0]])
        return Role(started.collective, "done") if started else None
    if opcode not in ("fusion", "async-start", "call-start"):
        return None
    inner = module.inner(instruction)
    if inner is None:
        return None
    exchange = next((i for i in inner.instructions.values() if i.opcode in COLLECTIVE_OPCODES), None)
    if exchange is None:
        return None
    collective = _collective(module, exchange, scattered=_is_scattered(inner, exchange))
    if not collective.source:
        collective = dataclasses.replace(collective, source=_source(instruction))
    if opcode in ("async-start", "call-start"):
        return Role(collective, "start")
    targets = {i.attribute("custom_call_target") for i in inner.instructions.values() if i.opcode == "custom-call"}
    if '"AsyncCollectiveStart"' in targets:
        return Role(collective, "start")
    if '"AsyncCollectiveDone"' in targets:
        return Role(collective, "done")
    return Role(collective, "during" if inner.name.startswith("async_collective") else "whole")


def _is_scattered(inner: Computation, exchange: Instruction) -> bool:
    """Whether each device keeps only its slice of an all-reduce."""
    if exchange.opcode != "all-reduce":
        return False
    return any(user.opcode == "dynamic-slice" for user, _ in inner.users[exchange.name])


def _collective(module: Module, instruction: Instruction, *, scattered: bool = False) -> Collective:
    base = instruction.opcode.removesuffix("-start")
    kind = "reduce-scatter" if scattered else COLLECTIVE_OPCODES[base]
    group = group_of(instruction, module.partitions)
    arrays = instruction.arrays
    count = len(instruction.operands)
    if instruction.opcode.endswith("-start") and len(arrays) > count:
        arrays = arrays[count : 2 * count]  # (operands, results, ...)
    size = sum(array.bytes for array in arrays)
    if base == "reduce-scatter":
        size *= len(group)
    return Collective(kind, size, group, instruction.attribute("channel_id"), _source(instruction))


def _source(instruction: Instruction) -> str:
    match = _SOURCE.search(instruction.attributes)
    return match[1] if match else ""


def group_of(instruction: Instruction, partitions: int) -> tuple[int, ...]:
    """The partitions of the first group of a collective.

    Raises:
      HloError: if the groups are written in an unknown form.
    """
    pairs = instruction.attribute("source_target_pairs")
    if pairs:
        first = re.match(r"\{\{(\d+),(\d+)\}", pairs)
        return (int(first[1]), int(first[2])) if first else ()
    text = instruction.attribute("replica_groups")
    if text is None or text in ("{}", "{{}}"):
        return tuple(range(partitions))
    if text.startswith("{{"):
        return tuple(int(member) for member in text[2 : text.index("}")].split(","))
    if text.startswith("mesh"):
        # The text between the mesh and its axes may contain commas, so `attribute` would cut it off.
        return _mesh_group(instruction.attributes[instruction.attributes.index("replica_groups=") :])
    iota = _IOTA.match(text)
    if iota:
        count, size = _numbers(iota[1])
        return tuple(int(member) for member in _iota(iota[2], iota[3]).reshape(count, size)[0])
    raise HloError(f"unknown form of replica_groups: {text[:120]!r}")


def _mesh_group(text: str) -> tuple[int, ...]:
    """The first group of `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`; `'a':(2)2` is a part of an axis."""
    mesh = text[: text.index("]")]
    sizes = {name: int(size) for name, size in _MESH_SIZE.findall(mesh)}
    rest = text[text.index("]") :]
    axes = _MESH_AXES.search(rest)
    if not axes:
        raise HloError(f"no axes in replica_groups: {text[:120]!r}")
    order = _DEVICE_IDS.search(rest[: axes.start()])
    count = math.prod(sizes.values())
    ids = _iota(order[1], order[2]) if order else np.arange(count)
    # Every axis is split into three, (before, used, after), so that parts of axes need no special case.
    splits = {name: (1, 1, size) for name, size in sizes.items()}
    for name, before, used in _MESH_AXIS.findall(axes[1]):
        size = sizes[name]
        first, part = (int(before), int(used)) if used else (1, size)
        splits[name] = (first, part, size // (first * part))
    ids = ids.reshape([length for split in splits.values() for length in split])
    for axis in range(ids.ndim):
        if axis % 3 != 1:
            ids = ids.take([0], axis)
    return tuple(int(member) for member in ids.reshape(-1))


def _iota(dims: str, order: str | None) -> np.ndarray:
    sizes = _numbers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
