"""Pictures made of words: a scene as a grid of nouns, row by row, for a decoder that cannot see yet.

    grass grass owl grass   grass grass owl grass   zebra zebra grass grass   zebra zebra grass grass

A large language model can already look things up in what it has read; a decoder of a million parameters learns that
from its data. Read through such grids, captions, answers and boxes become questions of looking up a word, and what
stage 1 has to learn with the decoder frozen is only to put the right word-like feature into the right cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BACKGROUNDS = ("grass", "sky", "sand", "water", "wood", "snow")

# A cell shows an object that covers at least this share of it.
_COVERED = 0.35


Box = tuple[int, int, int, int]


# Stands for the surface that a written word is read from, so that the word "zebra" is not taken for a zebra.
SIGN = "sign"


def word_picture(things: Sequence[tuple[str, Box]], background: str, side: int, grid: int) -> str:
    """`grid`^2 words separated by spaces: per cell the thing that covers it, or the background.

    Args:
      things: (word, box in pixels) of what the scene shows.
      background: one of BACKGROUNDS, or SIGN.
      side: of the scene, pixels.
      grid: cells per side.
    """
    edges = np.linspace(0, side, grid + 1)
    cell = side / grid
    words = []
    for top in edges[:-1]:
        for left in edges[:-1]:
            shares = [_shared(box, left, top, cell) for _, box in things]
            best = int(np.argmax(shares))
            words.append(things[best][0] if shares[best] >= _COVERED else background)
    return " ".join(words)


def _shared(box: Box, left: float, top: float, cell: float) -> float:
    """The share of the cell that lies in the box."""
    width = min(box[2], left + cell) - max(box[0], left)
    height = min(box[3], top + cell) - max(box[1], top)
    return max(0.0, width) * max(0.0, height) / cell**2
