"""Cleaning rules: one function per rule, from a pair to the pair, to a rewritten pair, or to the reason of its removal.

    recipe = (rule(aspect_ratio, most=3.0), rule(html), rule(text_length, least=3, most=200))
    kept = apply(recipe, pair, counts)

Every rule is counted per corpus: how many pairs it rewrote, and how many it dropped for each reason.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipelines.pair import RawPair


@dataclasses.dataclass(frozen=True)
class Dropped:
    """The verdict of a rule that removes a pair.

    Attributes:
      reason: a short text from a small set, by which dropped pairs are counted.
      evidence: for the report, if the reason alone does not show that the rule is right, such as the evaluation
        images that the pair is close to; JSON, pictures in base64. The report shows some of it.
      causes: names that are all counted, such as the ids of these images.
    """

    reason: str
    evidence: tuple[Mapping[str, Any], ...] = ()
    causes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """The verdict of a rule that rewrites a pair for several causes, each of which is counted by its name."""

    pair: RawPair
    causes: tuple[str, ...]


Verdict = RawPair | Rewritten | Dropped
RuleFunction = Callable[..., Verdict]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule with its settings. It is a pure function of the pair."""

    function: RuleFunction
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The name of the function, under which the rule is counted."""
        return self.function.__name__

    def __call__(self, pair: RawPair) -> Verdict:
        """The verdict on a pair: the pair itself if the rule keeps it unchanged."""
        return self.function(pair, **dict(self.settings))

    def as_json(self) -> dict[str, Any]:
        """Everything that the rule's result depends on except its code."""
        return {"rule": self.name, **dict(self.settings)}


def rule(function: RuleFunction, **settings: Any) -> Rule:
    """A rule with settings, such as `rule(text_length, least=3, most=200)`."""
    return Rule(function, tuple(sorted(settings.items())))


@dataclasses.dataclass
class RuleCounts:
    """How often one rule was applied, rewrote a pair and dropped one (by reason), and the causes that it named."""

    seen: int = 0
    rewritten: int = 0
    causes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: RuleCounts) -> None:
        """Adds the counts of the same rule over other pairs."""
        self.seen += other.seen
        self.rewritten += other.rewritten
        self.causes.update(other.causes)
        self.dropped.update(other.dropped)

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "seen": self.seen,
            "rewritten": self.rewritten,
            "causes": dict(sorted(self.causes.items())),
            "dropped": dict(sorted(self.dropped.items())),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RuleCounts:
        """The inverse of `as_json`."""
        counters = (collections.Counter(values["causes"]), collections.Counter(values["dropped"]))
        return cls(values["seen"], values["rewritten"], *counters)


def new_counts(recipe: Sequence[Rule]) -> dict[str, RuleCounts]:
    """Zero counts of every rule, in the recipe's order."""
    return {each.name: RuleCounts() for each in recipe}


@dataclasses.dataclass(frozen=True)
class Judged:
    """The way of one pair through a recipe.

    Attributes:
      pair: after the last rule that rewrote it.
      rewritten: the names of the rules that rewrote it, each with the causes that it names.
      dropped: the verdict of the rule that dropped it, if one did.
      rule: the name of that rule, else "".
    """

    pair: RawPair
    rewritten: tuple[tuple[str, tuple[str, ...]], ...] = ()
    dropped: Dropped | None = None
    rule: str = ""


def judge(recipe: Sequence[Rule], pair: RawPair) -> Judged:
    """Applies the rules in order until one drops the pair. An error of a rule gets the rule's name as a note."""
    rewritten: list[tuple[str, tuple[str, ...]]] = []
    for each in recipe:
        try:
            verdict = each(pair)
        except Exception as error:
            error.add_note(each.name)
            raise
        if isinstance(verdict, Dropped):
            return Judged(pair, tuple(rewritten), verdict, each.name)
        causes: tuple[str, ...] = ()
        if isinstance(verdict, Rewritten):
            causes = verdict.causes
            verdict = verdict.pair
        if verdict is not pair or causes:
            rewritten.append((each.name, causes))
            pair = verdict
    return Judged(pair, tuple(rewritten))


def count(recipe: Sequence[Rule], judged: Judged, counts: Mapping[str, RuleCounts]) -> None:
    """Adds the way of one pair to `counts`."""
    for each in recipe:
        counts[each.name].seen += 1
        if each.name == judged.rule:
            break
    for name, causes in judged.rewritten:
        counts[name].rewritten += 1
        counts[name].causes.update(causes)
    if judged.dropped is not None:
        counts[judged.rule].dropped[judged.dropped.reason] += 1
        counts[judged.rule].causes.update(judged.dropped.causes)


def apply(recipe: Sequence[Rule], pair: RawPair, counts: Mapping[str, RuleCounts]) -> RawPair | None:
    """The pair after all rules, or None if one of them dropped it. `counts` is updated, unless a rule fails."""
    judged = judge(recipe, pair)
    count(recipe, judged, counts)
    return None if judged.dropped else judged.pair
