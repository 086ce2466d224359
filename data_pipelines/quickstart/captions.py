"""The captions of all stamps, cleaned by the rules of `data_pipelines.clean`, every rule counted.

    kept, counts = clean_captions(captions)

Rules on pictures and scores do not apply here. Of several captions of one picture the longest is kept, and of equal
sentences the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from data_pipelines.clean import text
from data_pipelines.clean.rule import Rule, apply, new_counts, rule
from data_pipelines.pair import RawPair


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption. Captions of equal `picture` (a checksum, or the id) describe the same image."""

    id: str
    picture: str
    language: str
    text: str
    license: str
    source: str


RULES: tuple[Rule, ...] = (
    *text.REWRITING,
    rule(text.corpus_tags),
    rule(text.emoji),
    rule(text.english_or_chinese, letters=0),  # the stamps' captions state their language
    rule(text.irregular_texts),
    rule(text.text_length, least_en=3, least_zh=1, most_en=200, most_zh=200),
)


def clean_captions(captions: Sequence[Caption]) -> tuple[list[Caption], dict[str, dict[str, int]]]:
    """Applies the rules in order.

    Returns:
      The remaining captions in the same order, and per rule how many it changed and dropped.
    """
    counts = new_counts(RULES)
    kept = []
    for caption in captions:
        pair = RawPair(caption.id, caption.source, caption.license, caption.language, texts=(caption.text,))
        cleaned = apply(RULES, pair, counts)
        if cleaned is not None:
            kept.append(dataclasses.replace(caption, text=cleaned.texts[0]))
    table = {name: {"changed": n.rewritten, "dropped": n.dropped.total()} for name, n in counts.items()}
    across: tuple[Callable[[Sequence[Caption]], list[Caption]], ...] = (keep_longest, repeated_sentences)
    for judge in across:
        before = len(kept)
        kept = judge(kept)
        table[judge.__name__] = {"changed": 0, "dropped": before - len(kept)}
    return kept, table


def keep_longest(captions: Sequence[Caption]) -> list[Caption]:
    """Keeps the longest of several captions of one picture in one language; on a tie, the first."""
    longest: dict[tuple[str, str], Caption] = {}
    for item in captions:
        kept = longest.setdefault((item.picture, item.language), item)
        if len(item.text) > len(kept.text):
            longest[item.picture, item.language] = item
    chosen = {id(item) for item in longest.values()}
    return [c for c in captions if id(c) in chosen]


def repeated_sentences(captions: Sequence[Caption]) -> list[Caption]:
    """Drops a caption whose sentence occurred before in the same language, even for another picture."""
    first: dict[tuple[str, str], Caption] = {}
    for item in captions:
        first.setdefault((item.language, item.text), item)
    return list(first.values())
