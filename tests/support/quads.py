"""How far a quadrilateral is from the pixels that it should enclose, measured on the pixels alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quad_error(quad: Sequence[Sequence[float]], changed_HW: np.ndarray) -> float:
    """The largest distance in pixels between a side of a quadrilateral and the outermost changed pixel next to it.

    Args:
      quad: corners in pixels, clockwise from the top left.
      changed_HW: whether each pixel belongs to the line, such as by comparing pictures with and without it.
    """
    rows, columns = np.nonzero(changed_HW)
    if not len(rows):
        return float("inf")
    # Every pixel counts with its four corners.
    points = np.concatenate([np.column_stack([columns + dx, rows + dy]) for dx in (0, 1) for dy in (0, 1)])
    corners = np.asarray(quad, float)
    errors = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = (end - start) / max(np.hypot(*(end - start)), 1e-9)
        inward = (points - start) @ np.asarray([-along[1], along[0]])
        errors.append(abs(inward.min()))
    return float(max(errors))
