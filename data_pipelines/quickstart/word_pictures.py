"""Pictures made of words: a scene as a grid of nouns, row by row, for a decoder that cannot see yet.

    grass grass owl grass   grass grass owl grass   zebra zebra grass grass   zebra zebra grass grass

A large language model can already look things up in its context; a decoder of a million parameters learns that from
its data. With such grids, captions, answers and boxes become a matter of looking up a word. Stage 1, whose decoder is
frozen, then only has to learn to put the right word-like feature into the right cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BACKGROUNDS = ("grass", "sky", "sand", "water", "wood", "snow")

# Cells per side: as many cells as the model has image features, so that the text after such a picture has the same
# positions as after an image.
PICTURE_GRID = 4

# The surface that a written word is on, so that the word "zebra" is not mistaken for a zebra.
SIGN = "sign"

# A cell shows an object that covers at least this share of it.
_COVERED = 0.35

Box = tuple[int, int, int, int]


def word_picture(objects: Sequence[tuple[str, Box]], background: str, side: int, grid: int) -> str:
    """`grid`^2 words separated by spaces: for each cell the object that covers it, or the background.

    Args:
      objects: (word, box in pixels) of every object in the scene.
      background: one of BACKGROUNDS, or SIGN.
      side: of the scene, pixels.
      grid: cells per side.
    """
    edges = np.linspace(0, side, grid + 1)
    cell = side / grid
    words = []
    for top in edges[:-1]:
        for left in edges[:-1]:
            shares = [_shared(box, left, top, cell) for _, box in objects]
            best = int(np.argmax(shares))
            words.append(objects[best][0] if shares[best] >= _COVERED else background)
    return " ".join(words)


def _shared(box: Box, left: float, top: float, cell: float) -> float:
    """The share of the cell that is inside the box."""
    width = min(box[2], left + cell) - max(box[0], left)
    height = min(box[3], top + cell) - max(box[1], top)
    return max(0.0, width) * max(0.0, height) / cell**2
