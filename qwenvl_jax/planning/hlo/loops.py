"""The trip counts of the loops of an HLO module.

HLO for CPU and GPU states `known_trip_count`; HLO for TPU does not. There we derive it from the loop's condition, the
initial value of its counter and the increment in its body, by evaluating a few integer instructions. A loop whose bound
depends on data (the loop over chunks of supervised tokens in the loss) has no static trip count.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from qwenvl_jax.planning.hlo.program import Computation, Instruction, Module

# Values of the elements of a computation's single tuple parameter (or of its parameters); None if not static.
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
    """The integer result of an instruction, or None if it is not static.

    Args:
      module: the program.
      computation: contains the instruction.
      name: of the instruction.
      values: of the parameters of the computation.
    """
    instruction = computation[name]
    opcode = instruction.opcode
    operands = instruction.operands
    if opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if opcode == "parameter":
        number = int(instruction.literal)
        return values[number] if len(computation.parameters) == len(values) else None
    if opcode == "get-tuple-element":
        source = computation[operands[0]]
        index = int(instruction.attribute("index") or 0)
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
        arguments = tuple(evaluate(module, computation, operand, values) for operand in operands)
        return evaluate(module, inner, inner.root.name, arguments)
    return None


def invariant(body: Computation) -> set[int]:
    """The indices of the elements of a loop's state that its body does not change."""
    unchanged: set[int] = set()
    if body.root.opcode != "tuple":
        return unchanged
    for index, operand in enumerate(body.root.operands):
        instruction = body[operand]
        while instruction.opcode in ("copy", "bitcast"):
            instruction = body[instruction.operands[0]]
        if instruction.opcode == "get-tuple-element" and body[instruction.operands[0]].opcode == "parameter":
            unchanged |= {index} & {int(instruction.attribute("index") or 0)}
    return unchanged


def body_values(module: Module, computation: Computation, loop: Instruction, values: Values) -> Values:
    """The values that are static within the loop's body: those of its invariant elements."""
    start = _start(module, computation, loop, values)
    kept = invariant(module[loop.called("body")])
    return tuple(value if index in kept else None for index, value in enumerate(start))


def trip_count(module: Module, computation: Computation, loop: Instruction, values: Values) -> int | None:
    """The trip count of a `while`, or None if it depends on data.

    Args:
      module: the program.
      computation: contains the loop.
      loop: the `while` instruction.
      values: of the parameters of the computation.
    """
    known = _KNOWN.search(loop.attributes)
    if known:
        return int(known[1])
    body = module[loop.called("body")]
    condition = module[loop.called("condition")]
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
    """The number of iterations for which the condition holds, or None if it is not static.

    Args:
      module: the program.
      condition: of the loop.
      body: of the loop.
      inside: static values of the elements of the loop's state.
      index: of the counter among these elements.
      first: initial value of the counter.
    """

    def with_counter(computation: Computation, name: str, counter: int) -> int | None:
        return evaluate(module, computation, name, (*inside[:index], counter, *inside[index + 1 :]))

    counter = body.root.operands[index]
    step = with_counter(body, counter, 0)
    check = with_counter(body, counter, 1000)
    if not step or check is None or check - 1000 != step:
        return None

    def holds(iteration: int, step: int = step) -> int | None:
        return with_counter(condition, condition.root.name, first + iteration * step)

    if holds(0) is None:
        return None
    if not holds(0):
        return 0
    # The condition holds up to some iteration and not after: double until it fails, then bisect.
    high = 1
    while holds(high):
        high *= 2
        if high > 2**40:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return high


def _read(condition: Computation) -> list[int]:
    """The indices of the elements of the state that a condition reads."""
    elements = [i for i in condition.instructions.values() if i.opcode == "get-tuple-element"]
    return [int(element.attribute("index") or 0) for element in elements]


def _start(module: Module, computation: Computation, loop: Instruction, values: Values) -> Values:
    """Values of the loop's initial state."""
    source = computation[loop.operands[0]]
    if source.opcode == "tuple":
        return tuple(evaluate(module, computation, operand, values) for operand in source.operands)
    return (None,) * max(len(source.arrays), 1)
