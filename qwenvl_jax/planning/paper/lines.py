"""Lines of the cost of the paper, and their sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwenvl_jax.planning.prediction import SECONDS_PER_HOUR

Range = tuple[float, float]  # from the roofline to the compiler's cycles


@dataclasses.dataclass(frozen=True)
class Line:
    """One cost.

    Attributes:
      part: `corpora`, `stages` or `evaluation`.
      name, formula: what costs, and how the dollars are reckoned.
      chips: that run it; 0 if it needs no TPU.
      chip_hours, core_hours, days, dollars: what it takes.
    """

    part: str
    name: str
    formula: str
    chips: int
    chip_hours: Range
    core_hours: float
    days: Range
    dollars: Range


def without_chips(part: str, name: str, formula: str, *, core_hours: float = 0.0, dollars: float) -> Line:
    """A line that needs no TPU; its formula gives its dollars."""
    return Line(part, name, formula, 0, (0.0, 0.0), core_hours, (0.0, 0.0), (dollars, dollars))


def on_chips(part: str, name: str, formula: str, chips: int, seconds: Range, price: float) -> Line:
    """A line of a slice.

    Args:
      part, name: those of the line.
      formula: of the seconds; that of the dollars is made of it.
      chips: of the slice.
      seconds: on the slice.
      price: in dollars per chip and hour.
    """
    fast, slow = seconds
    hours = (fast * chips / SECONDS_PER_HOUR, slow * chips / SECONDS_PER_HOUR)
    days = (fast / SECONDS_PER_HOUR / 24, slow / SECONDS_PER_HOUR / 24)
    dollars = (hours[0] * price, hours[1] * price)
    formula = f"{formula} x {chips} chip{'s' * (chips > 1)} / 3,600 x ${price:g}"
    return Line(part, name, formula, chips, hours, 0.0, days, dollars)


def total(lines: Sequence[Line], name: str, formula: str) -> Line:
    """The sum of lines; its days are those of one after another, its chips those of the largest slice."""

    def both(values: list[Range]) -> Range:
        return sum(first for first, _ in values), sum(second for _, second in values)

    return Line(
        lines[0].part,
        name,
        formula,
        max(line.chips for line in lines),
        both([line.chip_hours for line in lines]),
        sum(line.core_hours for line in lines),
        both([line.days for line in lines]),
        both([line.dollars for line in lines]),
    )


def summed(lines: Sequence[Line]) -> list[Line]:
    """The lines with a sum after every part, and one of all at the end."""
    result: list[Line] = []
    parts = list(dict.fromkeys(line.part for line in lines))
    for part in parts:
        of_part = [line for line in lines if line.part == part]
        result += [*of_part, total(of_part, f"all {part}", f"the sum of the {len(of_part)} lines above")]
    everything = dataclasses.replace(
        total(lines, "the whole paper", " + ".join(f"all {part}" for part in parts)), part="all"
    )
    return [*result, everything]


def span(values: Range, form: str) -> str:
    """Both ends of a range in a formula, or the one that they are."""
    first, second = (f"{value:{form}}" for value in values)
    return first if first == second else f"{first} - {second}"
