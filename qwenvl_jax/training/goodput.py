"""Adds up a run's ledger over all its starts: shares of the time, lost work, downtime.

Lost work is the time of steps that a later start took again, because they came after its checkpoint; it is no longer
counted as `step` and `data`. Downtime is the time between the last sign of life of a start and the next start.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint.layout import LEDGER
from qwenvl_jax.runtime import json_lines
from qwenvl_jax.training.ledger import KINDS, whole_lines

LOST = "lost work"
DOWN = "downtime"
# In the order in which they are shown.
ALL_KINDS = ("step", "data", "compilation", "initialisation", "checkpoint", "evaluation", "other", LOST, DOWN)
_REPEATABLE = ("step", "data")  # what lost steps consisted of
_END_OF_TIME = 253_402_300_800.0  # the year 10,000, in seconds since 1970
_ROUNDING = 0.01  # seconds that the kinds of a line may add up to more than its length


@dataclasses.dataclass(frozen=True)
class Interval:
    """One line of the ledger.

    Attributes:
      begin, end: seconds since 1970.
      first, last: steps taken before and after it.
      seconds: by kind; lost steps have been moved to LOST.
    """

    begin: float
    end: float
    first: int
    last: int
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
      facts: what its first line says: `step`, `host`, `processes`, `devices`.
      begin, end: seconds since 1970; the end is its last sign of life.
      intervals: in order, without gaps.
      code: the exit code, or None if it was killed or still runs.
      reason: of its end; empty if the ledger does not have it.
    """

    facts: Mapping[str, Any]
    begin: float
    end: float
    intervals: Sequence[Interval]
    code: int | None = None
    reason: str = ""

    @property
    def step(self) -> int:
        """The step that it continued from."""
        return int(self.facts["step"])

    @property
    def last_step(self) -> int:
        """The last step that it is known to have taken."""
        return max((interval.last for interval in self.intervals), default=self.step)


@dataclasses.dataclass(frozen=True)
class Account:
    """The time of a run.

    Attributes:
      starts: all of them, in order.
      seconds: by kind, of ALL_KINDS.
    """

    starts: Sequence[Start]
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds since the first start began."""
        return sum(self.seconds.values())

    def share(self, kind: str) -> float:
        """The share of a kind in the total."""
        return self.seconds[kind] / self.total if self.total else 0.0

    @property
    def goodput(self) -> float:
        """The share of the time in which the devices took steps that count."""
        return self.share("step")

    def sentence(self) -> str:
        """One line: the total, the number of starts, and the share of every kind that took at least a thousandth."""
        shares = [f"{kind} {self.share(kind):.1%}" for kind in ALL_KINDS if self.share(kind) >= 0.001]
        starts = "1 start" if len(self.starts) == 1 else f"{len(self.starts)} starts"
        return f"goodput {self.goodput:.1%} of {clock(self.total)} in {starts}: {', '.join(shares)}"


def read_account(workdir: epath.Path) -> Account:
    """The account of a run's folder; empty if it has no ledger."""
    return account_of(whole_lines(workdir / LEDGER))


def account_of(ledger: bytes) -> Account:
    """Adds up the lines of a ledger. Lines that cannot be read, or that say what cannot be, are left out."""
    starts = _without_lost_work(_starts(ledger))
    seconds = dict.fromkeys(ALL_KINDS, 0.0)
    for start in starts:
        for interval in start.intervals:
            for kind, value in interval.seconds.items():
                seconds[kind] += value
    for before, after in itertools.pairwise(starts):
        seconds[DOWN] += max(0.0, after.begin - before.end)
    return Account(starts, seconds)


def _starts(ledger: bytes) -> list[Start]:
    starts: list[Start] = []
    for _, line in json_lines.whole_objects(ledger):
        try:
            if line.get("event") == "start":
                at = _moment(line["at"])
                starts.append(Start({**line, "step": _step(line["step"])}, at, at, []))
            elif starts:
                starts[-1] = _continued(starts[-1], line)
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
    return starts


def _continued(start: Start, line: Mapping[str, Any]) -> Start:
    """A start with one more line of its own. Raises ValueError if the line says what cannot be."""
    if line.get("event") == "end":
        return dataclasses.replace(start, code=_step(line["code"]), reason=str(line["reason"]))
    begin = _moment(line["from"])
    end = _moment(line["to"])
    first, last = map(_step, line["steps"])
    seconds = {kind: value for kind, value in json_lines.numbers(line["seconds"]).items() if kind in KINDS}
    spent = sum(seconds.values())
    if not start.begin <= begin <= end or min(seconds.values(), default=0.0) < 0 or spent > end - begin + _ROUNDING:
        raise ValueError("no time passes like this")
    missing = end - start.end - spent  # of kinds that are not known here, or of lines that are gone
    seconds["other"] = seconds.get("other", 0.0) + max(0.0, missing)
    interval = Interval(begin, end, first, last, seconds)
    return dataclasses.replace(start, end=max(end, start.end), intervals=[*start.intervals, interval])


def _moment(value: Any) -> float:
    """Seconds since 1970 that a calendar has a date for. Raises ValueError."""
    moment = json_lines.number(value)
    if moment is None or not 0 <= moment < _END_OF_TIME:
        raise ValueError(f"{value!r} is no time")
    return float(moment)


def _step(value: Any) -> int:
    """A number of steps, or an exit code. Raises ValueError."""
    if type(value) is not int or not 0 <= value <= json_lines.MOST_STEPS:
        raise ValueError(f"{value!r} is no such number")
    return value


def _without_lost_work(starts: Sequence[Start]) -> list[Start]:
    """Moves the steps of each start that a later one took again from their kinds to LOST."""
    changed = []
    for number, start in enumerate(starts):
        kept = min((later.step for later in starts[number + 1 :]), default=None)
        intervals = start.intervals if kept is None else [_split(interval, kept) for interval in start.intervals]
        changed.append(dataclasses.replace(start, intervals=intervals))
    return changed


def _split(interval: Interval, kept: int) -> Interval:
    """The interval with the share of the steps after `kept` as lost."""
    if interval.last > interval.first:
        lost = min(1.0, max(0.0, (interval.last - kept) / (interval.last - interval.first)))
    else:
        lost = float(interval.first >= kept)  # a part of the step after `first`
    if not lost:
        return interval
    seconds = dict(interval.seconds)
    for kind in _REPEATABLE:
        value = seconds.pop(kind, 0.0)
        seconds[kind] = (1 - lost) * value
        seconds[LOST] = seconds.get(LOST, 0.0) + lost * value
    return dataclasses.replace(interval, seconds=seconds)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
