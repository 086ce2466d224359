"""Reading scheduled HLO text, as `compiled.as_text()` gives it on TPU, GPU and CPU.

A module is a set of computations, a computation a list of instructions in the order of its schedule. Only what a
prediction needs is understood; everything else of an instruction stays as text. XLA's own cost analysis is of no use
here: it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

# Bytes per element; types that hold no data (tokens) have none.
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
    """A text that is not the HLO that this parser knows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array of a result.

    Attributes:
      dtype, dims: as HLO writes them.
      space: the memory it lies in: 0 HBM, 1 VMEM, 5 the host's, else scalar memories.
      stored: elements with the padding to whole tiles: 104 lanes take the place of 128.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int
    stored: int

    @property
    def bytes(self) -> float:
        """Without padding."""
        return math.prod(self.dims) * ITEM_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> float:
        return self.stored * ITEM_BYTES[self.dtype]

    @property
    def hbm_bytes(self) -> float:
        return self.stored_bytes if self.space == 0 else 0.0


@dataclasses.dataclass(slots=True)
class Instruction:
    """One line. `arrays` are the leaves of its result, `literal` what stands between the parentheses."""

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
        start, depth = match.end(), 0
        for end in range(start, len(self.attributes)):
            letter = self.attributes[end]
            if letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
            elif letter == "," and depth == 0:
                return self.attributes[start:end]
        return self.attributes[start:]

    def called(self, name: str) -> str:
        """The computation that `calls=`, `body=` or the like names."""
        value = self.attribute(name)
        if value is None:
            raise HloError(f"{self.opcode} {self.name} names no {name}")
        return value.split()[0].lstrip("%")

    @property
    def estimated_cycles(self) -> float | None:
        """The compiler's own estimate, or None where it made no real one (elementwise fusions)."""
        match = re.search(r'"estimated_cycles":"(\d+)".*?"cost_model_type":"(\w+)"', self.attributes)
        return float(match[1]) if match and match[2] != "COST_MODEL_TYPE_INVALID" else None


@dataclasses.dataclass
class Computation:
    """Instructions by name, in schedule order; `root` is the result, `parameters` in the order of their numbers."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction
    parameters: list[Instruction]

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """For each name the instructions that read it, and as which operand."""
        found: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for position, operand in enumerate(instruction.operands):
                found[operand].append((instruction, position))
        return found


@dataclasses.dataclass
class Module:
    """A program: its computations, which one is run, and over how many devices."""

    computations: dict[str, Computation]
    entry: Computation
    partitions: int

    def __getitem__(self, name: str) -> Computation:
        if name not in self.computations:
            raise HloError(f"the module has no computation {name}")
        return self.computations[name]

    def inner(self, instruction: Instruction) -> Computation | None:
        """What a fusion, a call or an asynchronous wrapper runs, or None."""
        for name in ("calls", "to_apply"):
            if instruction.attribute(name) is not None:
                return self[instruction.called(name)]
        return None


def parse(text: str) -> Module:
    """The module of an HLO text.

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
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif _END.match(line):
            computations[name] = _computation(name, lines)
            name = ""
        elif line.startswith("  ") and _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # an attribute may hold line breaks (metadata of Pallas kernels)
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
        raise HloError(f"no operation in the line of {name}: {text[:120]!r}")
    end = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : end]
    operands = tuple(_REFERENCE.findall(inside)) if opcode[1] != "constant" else ()
    return Instruction(name, opcode[1], _arrays(text[:stop]), operands, inside, text[end + 1 :].lstrip(", "))


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    raise HloError(f"a bracket is never closed: {text[start : start + 120]!r}")


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout, empty in _ARRAY.findall(text):
        dtype = dtype or empty
        if dtype not in ITEM_BYTES:
            raise HloError(f"unknown element type {dtype!r}")
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        found.append(Array(dtype, sizes, int(space[1]) if space else 0, _stored(sizes, layout)))
    return tuple(found)


def _stored(dims: tuple[int, ...], layout: str) -> int:
    """Elements of an array whose most minor axes are padded to the tile of its layout, `{minor, ..., major:T(..)}`."""
    sizes, tiled = list(dims), _TILE.match(layout)
    if tiled and tiled[1]:
        tile = [int(side) for side in tiled[2].split(",")]
        for axis, side in zip(map(int, tiled[1].split(",")), reversed(tile), strict=False):
            sizes[axis] = -(-sizes[axis] // side) * side
    return math.prod(sizes)
