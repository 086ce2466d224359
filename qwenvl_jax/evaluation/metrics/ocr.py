"""Character accuracy of text read from images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from rapidfuzz.distance import Levenshtein


@dataclasses.dataclass(frozen=True)
class CharacterAccuracy:
    """Edits and reference characters over a corpus; `accuracy` is 1 - edits / characters, not below zero."""

    edits: int
    characters: int

    @property
    def accuracy(self) -> float:
        """The figure of papers and tables; 0.0 if there are no characters."""
        return max(0.0, 1 - self.edits / self.characters) if self.characters else 0.0


def _join(lines: Iterable[str]) -> str:
    # The order of lines counts; white space within a line does not.
    return "\n".join(" ".join(line.split()) for line in lines)


def character_accuracy(pairs: Iterable[tuple[Iterable[str], Iterable[str]]]) -> CharacterAccuracy:
    """Micro-averaged over the corpus: every reference character has the same weight.

    Args:
      pairs: the predicted and the true lines of each image, both in reading order. Characters are Unicode code
        points. The edits of an image are at most the length of the longer of its two texts.
    """
    edits = characters = 0
    for predicted, true in pairs:
        reference = _join(true)
        edits += Levenshtein.distance(_join(predicted), reference)
        characters += len(reference)
    return CharacterAccuracy(edits, characters)
