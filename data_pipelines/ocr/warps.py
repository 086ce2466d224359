"""Geometric distortions of a synthetic document, each with the way that a point takes through it.

Points are in pixels with (0, 0) at the outer corner of the first pixel, as in records; OpenCV counts from the centre of
that pixel.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from data_pipelines.ocr.synthetic_settings import PERSPECTIVE_SHORTENED, PERSPECTIVE_WEIGHTS, PageSettings

_TABLE = 1 << 22  # random numbers in the table from which fields are cut
_SIDE_POINTS = 17  # points of each side of a rectangle that are followed through the elastic distortion


@functools.cache
def _normal_table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_TABLE, dtype=np.float32)


@functools.cache
def _uniform_table() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, _TABLE).astype(np.float32)


def random_field(rng: np.random.Generator, height: int, width: int, normal: bool) -> np.ndarray:
    """[H, W] float32 random numbers: standard normal, or uniform from -1 to 1.

    They are a stretch of one table, entered at a random position, which is fifty times faster than drawing them.
    """
    table = _normal_table() if normal else _uniform_table()
    count = height * width
    if count >= _TABLE:
        return np.resize(table, count).reshape(height, width)
    start = int(rng.integers(_TABLE - count))
    return table[start : start + count].reshape(height, width)


class Elastic:
    """Every pixel is shifted a little: uniform shifts of at most `alpha` pixels, smoothed with deviation `sigma`."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, settings: PageSettings):
        alpha = rng.uniform(*settings.elastic_alpha)
        sigma = rng.uniform(*settings.elastic_sigma)
        self._x_HW = _smooth(alpha * random_field(rng, height, width, normal=False), sigma)
        self._y_HW = _smooth(alpha * random_field(rng, height, width, normal=False), sigma)
        self._nothing = alpha == 0

    def picture(self, gray_HW: np.ndarray) -> np.ndarray:
        """The distorted picture: the pixel at p has the value of the picture at p + shift(p)."""
        if self._nothing:
            return gray_HW
        height, width = gray_HW.shape
        x = self._x_HW + np.arange(width, dtype=np.float32)
        y = self._y_HW + np.arange(height, dtype=np.float32)[:, None]
        return cv2.remap(gray_HW, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The rectangle around a rectangle after the distortion: each side goes to its mean position.

        The shifts of neighbouring pixels differ, so a straight side becomes a ragged one, which has no exact position.
        """
        if self._nothing:
            return box
        x1, y1, x2, y2 = box
        across = np.linspace(x1, x2 - 1, _SIDE_POINTS)
        down = np.linspace(y1, y2 - 1, _SIDE_POINTS)
        return (
            x1 - self._mean(self._x_HW, np.full_like(down, x1), down),
            y1 - self._mean(self._y_HW, across, np.full_like(across, y1)),
            x2 - self._mean(self._x_HW, np.full_like(down, x2 - 1), down),
            y2 - self._mean(self._y_HW, across, np.full_like(across, y2 - 1)),
        )

    @staticmethod
    def _mean(shift_HW: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        height, width = shift_HW.shape
        rows = np.clip(y, 0, height - 1).astype(int)
        columns = np.clip(x, 0, width - 1).astype(int)
        return float(shift_HW[rows, columns].mean())


def _smooth(field_HW: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(field_HW, (0, 0), sigma) if sigma > 0.1 else field_HW


def perspective(rng: np.random.Generator, width: int, height: int, settings: PageSettings) -> np.ndarray:
    """The corners of the document after a random perspective, [4, 2], clockwise from the top left, from (0, 0) on.

    Each side that is shortened keeps at least `settings.perspective` of its length and moves along itself within what
    it has lost, so that the document stays within its old rectangle.
    """
    weights = np.asarray(PERSPECTIVE_WEIGHTS, float)
    shortened = PERSPECTIVE_SHORTENED[rng.choice(len(weights), p=weights / weights.sum())]
    kept = [rng.uniform(settings.perspective, 1) if short else 1.0 for short in shortened]
    aligned = rng.uniform(-1, 1, 4)
    lengths = np.asarray([width, height, width, height], float)
    lost = lengths * (1 - np.asarray(kept)) / 2
    shift = aligned * lost
    top, right, bottom, left = range(4)
    corners = np.asarray(
        [
            (lost[top] + shift[top], lost[left] + shift[left]),
            (width - lost[top] + shift[top], lost[right] + shift[right]),
            (width - lost[bottom] + shift[bottom], height - lost[right] + shift[right]),
            (lost[bottom] + shift[bottom], height - lost[left] + shift[left]),
        ]
    )
    return corners - corners.min(axis=0)


def homography(width: int, height: int, corners: np.ndarray) -> np.ndarray:
    """The [3, 3] matrix that takes the corners of a `width` x `height` picture to `corners` ([4, 2], clockwise)."""
    flat = np.asarray([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    return cv2.getPerspectiveTransform(flat, corners.astype(np.float32))


def warped(picture: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture, [h, w] or [h, w, C], after a homography, on a canvas of `width` x `height` pixels that is 0."""
    to_corner = np.asarray([(1, 0, 0.5), (0, 1, 0.5), (0, 0, 1)])
    to_center = np.asarray([(1, 0, -0.5), (0, 1, -0.5), (0, 0, 1)])
    return cv2.warpPerspective(picture, to_center @ matrix @ to_corner, (width, height), flags=cv2.INTER_LINEAR)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [N, 2] after a homography, [N, 2]."""
    homogeneous = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]
