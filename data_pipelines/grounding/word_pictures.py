"""Pictures made of words: a scene as a grid of nouns, row by row, for a decoder that cannot see yet.

    grass grass owl grass   grass grass owl grass   zebra zebra grass grass   zebra zebra grass grass

A large language model can already look things up in what it has read; a decoder of a million parameters learns that
from its data. Read through such grids, captions, answers and boxes become questions of looking up a word, and what
stage 1 has to learn with the decoder frozen is only to put the right word-like feature into the right cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.grounding.scenes import SceneObject

BACKGROUNDS = ("grass", "sky", "sand", "water", "wood", "snow")

# A cell shows an object that covers at least this share of it.
_COVERED = 0.35


def word_picture(rng: np.random.Generator, objects: Sequence[SceneObject], side: int, grid: int) -> str:
    """`grid`^2 words separated by spaces: per cell the last word of an object's English noun, or the background.

    Args:
      rng: chooses the background.
      objects: of the scene, boxes in pixels.
      side: of the scene, pixels.
      grid: cells per side.
    """
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    edges = np.linspace(0, side, grid + 1)
    cell = side / grid
    words = []
    for top in edges[:-1]:
        for left in edges[:-1]:
            shares = [_shared(o.box, left, top, cell) for o in objects]
            best = int(np.argmax(shares))
            words.append(objects[best].stamp.noun_en.split()[-1] if shares[best] >= _COVERED else background)
    return " ".join(words)


def _shared(box: tuple[int, int, int, int], left: float, top: float, cell: float) -> float:
    """The share of the cell that lies in the box."""
    width = min(box[2], left + cell) - max(box[0], left)
    height = min(box[3], top + cell) - max(box[1], top)
    return max(0.0, width) * max(0.0, height) / cell**2
