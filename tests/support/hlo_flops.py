"""Counts the operations of all matrix products in a compiled program, loops times their trip counts.

An independent count of the operations that really run: XLA's cost analysis counts the body of a loop once.
"""

from __future__ import annotations

import math
import re

_SHAPE = re.compile(r"\b(?:f32|bf16|f16|s32|u8|pred)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLS = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def _dims(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def count(hlo: str) -> float:
    """Two operations per multiply-add of every dot and convolution that the entry computation reaches."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in hlo.splitlines():
        header = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current and line.startswith("}"):
            current = ""
        elif current:
            computations[current].append(line)
    shapes: dict[tuple[str, str], list[int]] = {}
    for name, lines in computations.items():
        for line in lines:
            match = _INSTRUCTION.match(line)
            shape = _SHAPE.search(match[2]) if match else None
            if match and shape:
                shapes[name, match[1]] = _dims(shape[1])

    def operands(name: str, text: str, opcode: str) -> list[list[int]]:
        inside = text.split(f" {opcode}(", 1)[1].split(")", 1)[0]
        return [shapes[name, operand] for operand in re.findall(r"%([\w.\-]+)", inside)]

    def walk(name: str) -> float:
        total = 0.0
        for line in computations[name]:
            match = _INSTRUCTION.match(line)
            if not match:
                continue
            text = match[2]
            if " dot(" in text:
                result = math.prod(shapes[name, match[1]])
                left = operands(name, text, "dot")[0]
                contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
                assert contracted, line
                total += 2.0 * result * math.prod(left[k] for k in _dims(contracted[1]))
            elif " convolution(" in text:
                result = math.prod(shapes[name, match[1]])
                kernel = operands(name, text, "convolution")[1]
                labels = re.search(r"dim_labels=\w+_(\w+)->", text)
                assert labels, line
                total += 2.0 * result * math.prod(kernel) / kernel[labels[1].index("o")]
            trips = 1.0
            if " while(" in text:
                known = _TRIPS.search(text)
                assert known, f"a loop without a known trip count: {line.strip()[:200]}"
                trips = float(known[1])
            total += trips * sum(walk(called) for called in _CALLS.findall(text) if called in computations)
            branches = re.search(r"branch_computations=\{([^}]*)\}", text)
            if branches:
                total += max(walk(branch.strip().lstrip("%")) for branch in branches[1].split(","))
        return total

    return walk(entry)
