"""What a field of the schema says about its values: a range, a choice, whether a run may change it later.

A field is annotated as `Annotated[int, Range(1, 8), Mark.FREE_ON_RESUME]`. `validate` applies the constraints of
all fields and then the `check` of each class, which compares fields with one another.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from qwenvl_jax.runtime.errors import UserError, nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; greater than `low` if `above`, less than `high` if `below`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:  # False for NaN
        at_low = value > self.low if self.above else value >= self.low
        at_high = value < self.high if self.below else value <= self.high
        return at_low and at_high

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.above else f"at least {self.low:g}"
        high = f"less than {self.high:g}" if self.below else f"at most {self.high:g}"
        return f"{low} and {high}"

    def check(self, value: float, path: str) -> None:
        """Raises UserError if the value is out of range."""
        if self.low == 1 and not self.above:
            require(value >= 1, f"{path} must be positive, not {value}")
        if self.low == 0 and not self.above:
            require(value >= 0, f"{path} must not be negative, but is {value}")
        require(value in self, f"{path} is {value}; it must be {self}")


@dataclasses.dataclass(frozen=True)
class OneOf:
    """A string, or all strings of a tuple, must be one of `known`."""

    known: tuple[str, ...]

    def check(self, value: str | tuple[str, ...], path: str) -> None:
        """Raises UserError naming the nearest known string."""
        for name in (value,) if isinstance(value, str) else value:
            known = ", ".join(self.known)
            require(name in self.known, f"{path} is {name!r}, which is not one of {known}{nearest(name, self.known)}")


@dataclasses.dataclass(frozen=True)
class FormerName:
    """The name that a key had in earlier versions; checkpoints and releases of then can still be read."""

    name: str


class Mark(enum.Enum):
    """How a key may change while a run goes on."""

    FREE_ON_RESUME = "it changes where and how the same numbers are computed and kept, never the numbers"
    MOVABLE = "it names files, which may have moved; the run checks their contents"


def require(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


@functools.cache
def fields_of(cls: Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The type and the constraints of every field of a dataclass, by its name."""
    types = typing.get_type_hints(cls)
    annotated = typing.get_type_hints(cls, include_extras=True)
    return {name: (types[name], getattr(annotated[name], "__metadata__", ())) for name in types}


def former_names(cls: type) -> dict[str, str]:
    """Today's names of the fields of one dataclass by their former names."""
    return {
        constraint.name: name
        for name, (_, constraints) in fields_of(cls).items()
        for constraint in constraints
        if isinstance(constraint, FormerName)
    }


def all_former_names(cls: type) -> dict[str, str]:
    """As `former_names`, of a dataclass and of all dataclasses below it."""
    names = former_names(cls)
    for kind, _ in fields_of(cls).values():
        for part in (kind, *typing.get_args(kind)):
            if dataclasses.is_dataclass(part):
                names |= all_former_names(typing.cast(type, part))
    return names


def marks(cls: type, key: str) -> set[Mark]:
    """The marks of a key of a dataclass and of the groups it is in.

    Args:
      cls: e.g. `Config`.
      key: the path of a value below it, e.g. `data.mixture[0].records`.
    """
    collected: set[Mark] = set()
    for part in key.split("."):
        cls, constraints = fields_of(cls)[part.split("[")[0]]
        collected |= {constraint for constraint in constraints if isinstance(constraint, Mark)}
        if typing.get_origin(cls) is tuple:
            cls = typing.get_args(cls)[0]
    return collected


def validate(value: T, path: str = "config") -> T:
    """Checks what the types of a dataclass cannot: ranges, names, and how fields fit one another. Returns it.

    Args:
      value: a dataclass; dataclasses below it are checked as well, and before it.
      path: what messages call it.

    Raises:
      UserError: naming the key and what would be valid.
    """
    cls: Any = type(value)
    for name, (_, constraints) in fields_of(cls).items():
        field = getattr(value, name)
        field_path = f"{path}.{name}"
        for leaf_path, leaf in _leaves(field, field_path):
            if dataclasses.is_dataclass(leaf):
                validate(leaf, leaf_path)
            elif isinstance(leaf, float):
                require(math.isfinite(leaf), f"{leaf_path} is {leaf}; it must be a finite number")
        for constraint in constraints:
            if isinstance(constraint, Range | OneOf):
                constraint.check(field, field_path)
    check = getattr(value, "check", None)
    if check is not None:
        check(path)
    return value


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The value itself, or the items of a tuple however deep, with their paths."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
