"""Pairs for the tests of rules."""

from __future__ import annotations

from data_pipelines.clean.rule import Dropped, Rewritten, Rule, RuleFunction, rule
from data_pipelines.pair import RawPair


def pair_of(*texts: str, language: str = "") -> RawPair:
    """A pair without pictures."""
    return RawPair("a", "test", "CC0-1.0", language, texts=texts)


def verdict(function: RuleFunction | Rule, pair: RawPair, **settings: object) -> RawPair | str:
    """The pair after a rule, or the reason why it is dropped."""
    each = function if isinstance(function, Rule) else rule(function, **settings)
    judged = each(pair)
    if isinstance(judged, Dropped):
        return judged.reason
    return judged.pair if isinstance(judged, Rewritten) else judged


def text_after(function: RuleFunction | Rule, text: str, language: str = "", **settings: object) -> str:
    """The text after a rule, or the reason why it is dropped in brackets."""
    judged = verdict(function, pair_of(text, language=language), **settings)
    return f"[{judged}]" if isinstance(judged, str) else judged.texts[0]
