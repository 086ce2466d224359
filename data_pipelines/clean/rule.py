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
      reason: a few words of which there are few, by which dropped pairs are counted.
      evidence: for the report, if the reason alone does not show that the rule is right, such as the evaluation
        images that the pair is close to; JSON, pictures in base64.
    """

    reason: str
    evidence: tuple[Mapping[str, Any], ...] = ()


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
        """The pair itself if the rule has nothing against it."""
        return self.function(pair, **dict(self.settings))

    def as_json(self) -> dict[str, Any]:
        """Everything that the rule's result depends on except its code."""
        return {"rule": self.name, **dict(self.settings)}


def rule(function: RuleFunction, **settings: Any) -> Rule:
    """A rule with settings, such as `rule(text_length, least=3, most=200)`."""
    return Rule(function, tuple(sorted(settings.items())))


@dataclasses.dataclass
class RuleCounts:
    """How often one rule was applied, rewrote a pair, for each cause that it names, and dropped one, for each reason."""

    seen: int = 0
    rewritten: int = 0
    causes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "seen": self.seen,
            "rewritten": self.rewritten,
            "causes": dict(sorted(self.causes.items())),
            "dropped": dict(sorted(self.dropped.items())),
        }


def new_counts(recipe: Sequence[Rule]) -> dict[str, RuleCounts]:
    """Zero counts of every rule, in the recipe's order."""
    return {each.name: RuleCounts() for each in recipe}


def apply(recipe: Sequence[Rule], pair: RawPair, counts: Mapping[str, RuleCounts]) -> RawPair | None:
    """The pair after all rules, or None if one of them dropped it. `counts` is updated."""
    for each in recipe:
        count = counts[each.name]
        count.seen += 1
        verdict = each(pair)
        if isinstance(verdict, Dropped):
            count.dropped[verdict.reason] += 1
            return None
        if isinstance(verdict, Rewritten):
            count.causes.update(verdict.causes)
            verdict = verdict.pair
        if verdict is not pair:
            count.rewritten += 1
            pair = verdict
    return pair
