"""Character accuracy of text read from images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein


@dataclasses.dataclass(frozen=True)
class CharacterAccuracy:
    """Characters over a corpus: `accuracy` = 1 - edits / reference characters, not below zero."""

    edits: int
    characters: int

    @property
    def accuracy(self) -> float:
        return max(0.0, 1 - self.edits / self.characters) if self.characters else 0.0


def _join(lines: Iterable[str]) -> str:
    # Lines count in reading order; how a line is broken and padded does not.
    return "\n".join(" ".join(line.split()) for line in lines)


def character_accuracy(pairs: Iterable[tuple[Iterable[str], Iterable[str]]]) -> CharacterAccuracy:
    """Micro-averaged over the corpus: every reference character has the same weight.

    Args:
      pairs: per image the predicted lines and the true lines, both in reading order. Characters are Unicode code
        points. A prediction longer than its reference counts at most the length of the longer one as edits.
    """
    edits = characters = 0
    for predicted, true in pairs:
        reference = _join(true)
        edits += Levenshtein.distance(_join(predicted), reference)
        characters += len(reference)
    return CharacterAccuracy(edits, characters)
