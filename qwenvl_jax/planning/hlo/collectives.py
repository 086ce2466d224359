"""Collectives of an HLO module: what is exchanged, how much, and among whom.

A collective appears as one instruction, as a `-start` and `-done` pair, or, on TPU, as fusions: one that begins it
(`AsyncCollectiveStart`), some that compute while it goes on, and one that ends it (`AsyncCollectiveDone`), all with
the same channel. A reduce-scatter is a fusion of an all-reduce and the slice that follows. What runs on the
SparseCores is a computation that a `call-start` begins and a `call-done` ends.
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
    """One exchange.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole buffer on one device: the result of an all-gather, the input of a reduce-scatter, the
        operand of the others.
      group: partitions of one of the groups; for a permute, one pair.
      channel: the same for all instructions that belong together, or None.
      source: where the program asks for it, as JAX names it (`jit(step)/...`); empty if the compiler made it up.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    channel: str | None
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Role:
    """What an instruction has to do with a collective: `phase` is `whole`, `start`, `during` or `done`."""

    collective: Collective
    phase: str


def role(module: Module, computation: Computation, instruction: Instruction) -> Role | None:
    """The part that an instruction of a schedule plays in a collective, or None."""
    opcode = instruction.opcode
    for suffix, phase in (("-start", "start"), ("-done", "done"), ("", "whole")):
        base = opcode.removesuffix(suffix) if suffix and opcode.endswith(suffix) else opcode
        if base in COLLECTIVE_OPCODES and (suffix == "" or base != opcode):
            source = computation[instruction.operands[0]] if phase == "done" else instruction
            return Role(_collective(module, source), phase)
    if opcode in ("async-done", "call-done"):
        started = role(module, computation, computation[instruction.operands[0]])
        return Role(started.collective, "done") if started else None
    if opcode not in ("fusion", "async-start", "call-start"):
        return None
    inner = module.inner(instruction)
    if inner is None:
        return None
    found = [i for i in inner.instructions.values() if i.opcode in COLLECTIVE_OPCODES]
    if not found:
        return None
    collective = _collective(module, found[0], scattered=_is_scattered(inner, found[0]))
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


def _is_scattered(inner: Computation, found: Instruction) -> bool:
    """Whether each device keeps only its slice of an all-reduce."""
    if found.opcode != "all-reduce":
        return False
    return any(user.opcode == "dynamic-slice" for user, _ in inner.users[found.name])


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
    found = _SOURCE.search(instruction.attributes)
    return found[1] if found else ""


def group_of(instruction: Instruction, partitions: int) -> tuple[int, ...]:
    """The partitions of the first group of a collective.

    Raises:
      HloError: if the groups are written in an unknown way.
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
        # What follows the mesh up to the axes may hold commas, so the whole of the attributes is searched.
        return _mesh_group(instruction.attributes[instruction.attributes.index("replica_groups=") :])
    iota = _IOTA.match(text)
    if iota:
        count, size = _numbers(iota[1])
        return tuple(int(member) for member in _iota(iota[2], iota[3]).reshape(count, size)[0])
    raise HloError(f"unknown form of replica_groups: {text[:120]!r}")


def _mesh_group(text: str) -> tuple[int, ...]:
    """`mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`; an axis may be cut, as in `'a':(2)2`."""
    mesh = text[: text.index("]")]
    sizes = {name: int(size) for name, size in _MESH_SIZE.findall(mesh)}
    rest = text[text.index("]") :]
    axes = _MESH_AXES.search(rest)
    if not axes:
        raise HloError(f"no axes in replica_groups: {text[:120]!r}")
    order = _DEVICE_IDS.search(rest[: axes.start()])
    count = math.prod(sizes.values())
    ids = _iota(order[1], order[2]) if order else np.arange(count)
    # Every axis as (before, used, after), so that cut axes need nothing special.
    cuts = {name: (1, 1, size) for name, size in sizes.items()}
    for name, before, used in _MESH_AXIS.findall(axes[1]):
        size = sizes[name]
        first, part = (int(before), int(used)) if used else (1, size)
        cuts[name] = (first, part, size // (first * part))
    ids = ids.reshape([part for cut in cuts.values() for part in cut])
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
