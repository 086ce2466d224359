"""How often the loops of an HLO module run.

CPU and GPU text carries `known_trip_count`; TPU text does not. There the number follows from the loop's condition, the
start of its counter and the step that the body takes, all found by evaluating a few integer instructions. A loop
whose bound is data (the chunks of the loss that hold supervised tokens) has no static count.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from qwenvl_jax.planning.hlo.program import Computation, Instruction, Module

# Static values of the elements of a computation's single tuple parameter (or of its parameters); None: not static.
Values = tuple[int | None, ...]

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "minimum": min,
    "maximum": max,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "NE": operator.ne,
    "EQ": operator.eq,
}
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def evaluate(module: Module, computation: Computation, name: str, values: Values) -> int | None:
    """The integer that an instruction gives, or None if it is not static.

    Args:
      module: the program.
      computation: where the instruction stands.
      name: its name.
      values: of the computation's parameter.
    """
    instruction = computation[name]
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if opcode == "parameter":
        number = int(instruction.literal)
        return values[number] if len(computation.parameters) == len(values) else None
    if opcode == "get-tuple-element":
        source, index = computation[operands[0]], int(instruction.attribute("index") or 0)
        if source.opcode == "parameter" and len(computation.parameters) == 1:
            return values[index] if index < len(values) else None
        if source.opcode == "tuple":
            return evaluate(module, computation, source.operands[index], values)
        if source.opcode == "while":
            start = _start(module, computation, source, values)
            return start[index] if index in invariant(module[source.called("body")]) else None
        return None
    if opcode in _SAME:
        return evaluate(module, computation, operands[0], values)
    if opcode in _ARITHMETIC or opcode == "compare":
        first, second = (evaluate(module, computation, operand, values) for operand in operands)
        if first is None or second is None:
            return None
        if opcode == "compare":
            return int(_COMPARE[instruction.attribute("direction") or "EQ"](first, second))
        return _ARITHMETIC[opcode](first, second)
    if opcode == "fusion":
        inner = module[instruction.called("calls")]
        given = tuple(evaluate(module, computation, operand, values) for operand in operands)
        return evaluate(module, inner, inner.root.name, given)
    return None


def invariant(body: Computation) -> set[int]:
    """Which elements of a loop's state its body hands on unchanged."""
    found: set[int] = set()
    if body.root.opcode != "tuple":
        return found
    for index, operand in enumerate(body.root.operands):
        instruction = body[operand]
        while instruction.opcode in ("copy", "bitcast"):
            instruction = body[instruction.operands[0]]
        if instruction.opcode == "get-tuple-element" and body[instruction.operands[0]].opcode == "parameter":
            found |= {index} & {int(instruction.attribute("index") or 0)}
    return found


def body_values(module: Module, computation: Computation, loop: Instruction, values: Values) -> Values:
    """The static values that hold within the loop's body: those of its invariant elements."""
    start = _start(module, computation, loop, values)
    kept = invariant(module[loop.called("body")])
    return tuple(value if index in kept else None for index, value in enumerate(start))


def trip_count(module: Module, computation: Computation, loop: Instruction, values: Values) -> int | None:
    """How often the body of a `while` runs, or None if that is data.

    Args:
      module: the program.
      computation: where the loop stands.
      loop: the `while` instruction.
      values: static values of the computation's parameter.
    """
    known = _KNOWN.search(loop.attributes)
    if known:
        return int(known[1])
    body, condition = module[loop.called("body")], module[loop.called("condition")]
    start = _start(module, computation, loop, values)
    if body.root.opcode != "tuple":
        return None
    kept = invariant(body)
    inside: list[int | None] = [value if index in kept else None for index, value in enumerate(start)]
    for index in _read(condition):
        first = start[index] if index < len(start) else None
        if index in kept or first is None:
            continue
        count = _count(module, condition, body, inside, index, first)
        if count is not None:
            return count
    return None


def _count(
    module: Module, condition: Computation, body: Computation, inside: list[int | None], index: int, first: int
) -> int | None:
    """Iterations while the condition holds for the counter `index` that begins at `first`."""

    def at(computation: Computation, name: str, value: int) -> int | None:
        return evaluate(module, computation, name, (*inside[:index], value, *inside[index + 1 :]))

    step, check = (at(body, body.root.operands[index], value) for value in (0, 1000))
    if not step or check is None or check - 1000 != step:
        return None
    # The condition holds up to some iteration and never after: double until it fails, then bisect.
    if at(condition, condition.root.name, first) is None:
        return None
    if not at(condition, condition.root.name, first):
        return 0
    high = 1
    while at(condition, condition.root.name, first + high * step):
        high *= 2
        if high > 2**40:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(condition, condition.root.name, first + middle * step) else (low, middle)
    return high


def _read(condition: Computation) -> list[int]:
    """Elements of the state that a condition looks at."""
    elements = [i for i in condition.instructions.values() if i.opcode == "get-tuple-element"]
    return [int(element.attribute("index") or 0) for element in elements]


def _start(module: Module, computation: Computation, loop: Instruction, values: Values) -> Values:
    """Static values of the loop's initial state."""
    source = computation[loop.operands[0]]
    if source.opcode == "tuple":
        return tuple(evaluate(module, computation, operand, values) for operand in source.operands)
    return (None,) * max(len(source.arrays), 1)
