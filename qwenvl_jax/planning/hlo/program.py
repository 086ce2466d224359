"""Parses scheduled HLO text, the result of `compiled.as_text()` on TPU, GPU and CPU.

A module is a set of computations, and a computation is a list of instructions in the order of its schedule. Only what a
prediction needs is parsed; the other attributes of an instruction stay text. XLA's cost analysis cannot be used instead
because it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

# Bytes per element.
ITEM_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz", "f8e4m3", "f8e8m0fnu"), 1.0),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2.0),
    **dict.fromkeys(("f32", "s32", "u32"), 4.0),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8.0),
    **dict.fromkeys(("s4", "u4"), 0.5),
    "c128": 16.0,
    "token": 0.0,
    "opaque": 0.0,
}

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?|\b(token|opaque)\[\]")
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"\{([\d,]*):T\(([\d,]+)\)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_END = re.compile(r'^\}(, execution_thread="\w+")?\s*$')
_OPCODE = re.compile(r"([\w\-]+)\(")
_REFERENCE = re.compile(r"%([\w.\-]+)")


class HloError(ValueError):
    """The text is not HLO, or has a form that this parser does not support."""


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array of a result.

    Attributes:
      dtype, dims: as written in HLO.
      space: its memory space: 0 is HBM, 1 VMEM, 5 host memory; the others are scalar memories.
      stored: number of elements including the padding to whole tiles, e.g. of 104 lanes to 128.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int
    stored: int

    @property
    def bytes(self) -> float:
        """Size without padding."""
        return math.prod(self.dims) * ITEM_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> float:
        """Size including padding."""
        return self.stored * ITEM_BYTES[self.dtype]

    @property
    def hbm_bytes(self) -> float:
        """Size including padding if the array is in HBM, otherwise 0."""
        return self.stored_bytes if self.space == 0 else 0.0


@dataclasses.dataclass(slots=True)
class Instruction:
    """One instruction, a line of HLO.

    Attributes:
      name: without `%`.
      opcode: for example `fusion`.
      arrays: the leaves of its result.
      operands: names of other instructions.
      literal: the text between the parentheses.
      attributes: the text after the parentheses.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=...` up to the next comma outside brackets, or None."""
        match = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        if not match:
            return None
        start = match.end()
        depth = 0
        for end in range(start, len(self.attributes)):
            character = self.attributes[end]
            if character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
            elif character == "," and depth == 0:
                return self.attributes[start:end]
        return self.attributes[start:]

    def called(self, name: str) -> str:
        """The name of the computation in the attribute `name`, such as `calls` or `body`.

        Raises:
          HloError: if there is no such attribute.
        """
        value = self.attribute(name)
        if value is None:
            raise HloError(f"{self.opcode} {self.name} has no attribute {name}")
        return value.split()[0].lstrip("%")

    @property
    def estimated_cycles(self) -> float | None:
        """The compiler's estimate, or None if it has no cost model for the instruction (elementwise fusions)."""
        match = re.search(r'"estimated_cycles":"(\d+)".*?"cost_model_type":"(\w+)"', self.attributes)
        return float(match[1]) if match and match[2] != "COST_MODEL_TYPE_INVALID" else None


@dataclasses.dataclass
class Computation:
    """Instructions by name in schedule order. `root` is the result; `parameters` are in the order of their numbers."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction
    parameters: list[Instruction]

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """For every name the instructions that read it, each with the index of the operand."""
        users: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for index, operand in enumerate(instruction.operands):
                users[operand].append((instruction, index))
        return users


@dataclasses.dataclass
class Module:
    """A program: its computations, the entry computation, and the number of devices it runs on."""

    computations: dict[str, Computation]
    entry: Computation
    partitions: int

    def __getitem__(self, name: str) -> Computation:
        if name not in self.computations:
            raise HloError(f"the module has no computation {name}")
        return self.computations[name]

    def inner(self, instruction: Instruction) -> Computation | None:
        """The computation of a fusion, a call or an asynchronous wrapper, or None."""
        for name in ("calls", "to_apply"):
            if instruction.attribute(name) is not None:
                return self[instruction.called(name)]
        return None


def parse(text: str) -> Module:
    """Parses the text of a module.

    Raises:
      HloError: if it is not a scheduled HLO module.
    """
    if not text.startswith("HloModule"):
        raise HloError("the text does not begin with HloModule")
    partitions = re.search(r"num_partitions=(\d+)", text.split("\n", 1)[0])
    computations: dict[str, Computation] = {}
    entry = ""
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        if not name:
            header = _HEADER.match(line)
            if header:
                name = header[2]
                lines = []
                entry = name if header[1] else entry
        elif _END.match(line):
            computations[name] = _computation(name, lines)
            name = ""
        elif line.startswith("  ") and _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # an attribute may contain line breaks (metadata of Pallas kernels)
            lines[-1] += "\n" + line
    if not entry or name:
        raise HloError("the module has no complete entry computation")
    return Module(computations, computations[entry], int(partitions[1]) if partitions else 1)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    for line in lines:
        match = _INSTRUCTION.match(line)
        assert match  # the caller has matched it already
        instruction = _instruction(match[2], match[3])
        instructions[instruction.name] = instruction
        root = instruction if match[1] else root
    if root is None:
        raise HloError(f"the computation {name} has no ROOT")
    numbered = {int(i.literal): i for i in instructions.values() if i.opcode == "parameter"}
    return Computation(name, instructions, root, [numbered[number] for number in sorted(numbered)])


def _instruction(name: str, text: str) -> Instruction:
    stop = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ") if " " in text else len(text)
    opcode = _OPCODE.match(text, stop + 1)
    if not opcode:
        raise HloError(f"the line of {name} has no opcode: {text[:120]!r}")
    end = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : end]
    operands = tuple(_REFERENCE.findall(inside)) if opcode[1] != "constant" else ()
    return Instruction(name, opcode[1], _arrays(text[:stop]), operands, inside, text[end + 1 :].lstrip(", "))


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if not depth:
                return index
    raise HloError(f"a bracket is never closed: {text[start : start + 120]!r}")


def _arrays(text: str) -> tuple[Array, ...]:
    """The arrays in the text of a result, which may be a nested tuple."""
    arrays = []
    for dtype, dims, layout, empty in _ARRAY.findall(text):
        dtype = dtype or empty
        if dtype not in ITEM_BYTES:
            raise HloError(f"unknown element type {dtype!r}")
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        arrays.append(Array(dtype, sizes, int(space[1]) if space else 0, _stored(sizes, layout)))
    return tuple(arrays)


def _stored(dims: tuple[int, ...], layout: str) -> int:
    """Elements of an array with its minor axes padded to the tile of its layout, `{minor, ..., major:T(..)}`."""
    sizes = list(dims)
    tiled = _TILE.match(layout)
    if tiled and tiled[1]:
        tile = [int(side) for side in tiled[2].split(",")]
        for axis, side in zip(map(int, tiled[1].split(",")), reversed(tile), strict=False):
            sizes[axis] = -(-sizes[axis] // side) * side
    return math.prod(sizes)
