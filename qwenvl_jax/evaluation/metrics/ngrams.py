"""Counts of n-grams of many captions at once, as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

# Shape suffixes: T tokens of all captions, E entries (one per caption and n-gram of it).


@dataclasses.dataclass(frozen=True)
class Counts:
    """How often each n-gram occurs in each caption, sorted by caption and then n-gram.

    Attributes:
      caption_E: int64, the number of the caption.
      gram_E: int64, the number of the n-gram; equal n-grams of any captions have equal numbers below `grams`.
      count_E: int64.
      grams: how many different n-grams there are.
    """

    caption_E: np.ndarray
    gram_E: np.ndarray
    count_E: np.ndarray
    grams: int


def counts(captions: Sequence[Sequence[str]], longest: int) -> Iterator[Counts]:
    """The counts for n = 1, 2, .., `longest`."""
    numbers: dict[str, int] = {}
    lengths = np.array([len(caption) for caption in captions], np.int64)
    word_T = np.array([numbers.setdefault(word, len(numbers)) for caption in captions for word in caption], np.int64)
    caption_T = np.repeat(np.arange(len(captions)), lengths)
    # How many tokens of the caption follow, this one included.
    left_T = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(word_T))
    start = np.arange(len(word_T))
    gram = word_T
    grams = len(numbers)
    for n in range(1, longest + 1):
        if n > 1:
            inside = left_T[start] >= n
            start = start[inside]
            different, gram = np.unique(gram[inside] * len(numbers) + word_T[start + n - 1], return_inverse=True)
            grams = len(different)
        entries, count_E = np.unique(caption_T[start] * max(grams, 1) + gram, return_counts=True)
        caption_E, gram_E = np.divmod(entries, max(grams, 1))
        yield Counts(caption_E, gram_E, count_E, grams)


def lookup(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key is in the sorted `keys`, and whether it is there."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return index, keys[index] == wanted
