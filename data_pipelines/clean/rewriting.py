"""Helpers of rules on texts: rewrite the texts of a pair until nothing changes, or drop some of them.

    return rewrite_texts(pair, without_markup)
    return drop_texts(pair, lambda text: "too short" if len(text) < 3 else "")

Regions that quote the first text by offsets keep their phrase: the offsets move along with the characters.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence

from data_pipelines.clean.rule import Dropped, Rewritten, Verdict
from data_pipelines.pair import RawPair, Region

# A text that still changes after so many rounds is hostile; it is emptied, so that the rule of length drops it.
ROUNDS = 100

Step = Callable[[str], str]


def settle(text: str, steps: Sequence[Step]) -> str:
    """Applies all steps in turn until none changes the text any more; "" if they never come to an end."""
    for _ in range(ROUNDS):
        before = text
        for step in steps:
            text = step(text)
        if text == before:
            return text
    return ""


def rewrite_texts(pair: RawPair, rewrite: Step) -> RawPair:
    """The pair with rewritten texts; the pair itself if no text changes."""
    return with_texts(pair, tuple(rewrite(text) for text in pair.texts))


def drop_texts(pair: RawPair, reason_against: Callable[[str], str]) -> Verdict:
    """Drops the texts that `reason_against` gives a reason for ("": the text stays).

    Returns:
      The pair without these texts. Dropped with the first text's reason if no text is left; a pair without texts
      stays.
    """
    reasons = [reason_against(text) for text in pair.texts]
    if not any(reasons):
        return pair
    kept = tuple(text for text, reason in zip(pair.texts, reasons, strict=True) if not reason)
    if not kept:
        return Dropped(reasons[0])
    if reasons[0]:  # the text that regions refer to
        pair = dataclasses.replace(pair, regions=tuple(detached(region) for region in pair.regions))
    causes = tuple(sorted({reason for reason in reasons if reason}))
    return Rewritten(dataclasses.replace(pair, texts=kept), causes)


def with_texts(pair: RawPair, texts: tuple[str, ...]) -> RawPair:
    """The pair with its texts replaced one by one; offsets and phrases of its regions follow the first text.

    A region whose phrase is gone from the text is removed.
    """
    if texts == pair.texts:
        return pair
    regions = pair.regions
    if texts and texts[0] != pair.texts[0] and any(region.start >= 0 for region in regions):
        regions = _moved(regions, pair.texts[0], texts[0])
    return dataclasses.replace(pair, texts=texts, regions=regions)


def detached(region: Region) -> Region:
    """The region without its offsets, because the text that they count is gone."""
    return dataclasses.replace(region, start=-1, end=-1)


def _moved(regions: Sequence[Region], before: str, after: str) -> tuple[Region, ...]:
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    moved = []
    for region in regions:
        if region.start < 0:
            moved.append(region)
            continue
        start = next((j1 + (region.start - i1 if kind == "equal" else 0) for kind, i1, i2, j1, _ in blocks
                      if i1 <= region.start < i2), len(after))  # fmt: skip
        end = next((j1 + region.end - i1 if kind == "equal" else j2 for kind, i1, i2, j1, j2 in blocks
                    if i1 < region.end <= i2), 0)  # fmt: skip
        phrase = after[start:end]
        start += len(phrase) - len(phrase.lstrip())
        phrase = phrase.strip()
        if phrase:
            moved.append(dataclasses.replace(region, phrase=phrase, start=start, end=start + len(phrase)))
    return tuple(moved)
